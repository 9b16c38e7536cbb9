"""What docs/jax.md shows runs, block after block, on one device."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import oracle
import pytest

pytest.importorskip("jax")
pytest.importorskip("flax")
pytest.importorskip("equinox")

PAGE = (Path(__file__).parent.parent.parent / "docs" / "jax.md").read_text("utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, flags=re.DOTALL | re.MULTILINE)


def test_the_page_runs_and_gives_what_it_says() -> None:
    names: dict[str, Any] = {}
    for block in BLOCKS:
        exec(compile(block, "jax.md", "exec"), names)
    assert len(BLOCKS) == 4
    x = np.asarray(names["x"])
    assert oracle.worst(names["y"], oracle.forward(x, axis=-1).y) < 3e-6  # of the last block
    expected = oracle.moments(x, axis=-1)
    assert oracle.relative_l2(names["epoch"].m2, expected.m2) < 1e-6
    seen = oracle.moments(x, axis=-1, mask=np.arange(28)[:, None] < 20)
    assert oracle.relative_l2(names["running_mean"], seen.mean / 10) < 1e-6


def test_the_tests_that_the_page_names_exist() -> None:
    for name in re.findall(r"\]\(\.\./(tests/\S+?)\)", PAGE):
        assert (Path(__file__).parent.parent.parent / name).exists(), name
