"""docs/keras.md: its code runs and prints what it shows, and its tables hold."""

import re
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from on_backend import XHAT

PAGE = (Path(__file__).parents[2] / "docs" / "keras.md").read_text("utf-8")


def test_the_code_of_the_page_prints_what_it_shows(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, Any] = {}
    keras.utils.clear_session()  # layers are numbered
    shown = re.findall(r"^```python\n(.*?)^```(?:\n\n```\n(.*?)^```)?", PAGE, flags=re.DOTALL | re.MULTILINE)
    for code, printed in shown:
        exec(compile(code, "keras.md", "exec"), names)
        assert capsys.readouterr().out == printed
    assert len(shown) == 2
    assert isinstance(names["model"].get_layer("bn"), XHAT)
    variance = names["layer"].moving_variance
    assert np.allclose(keras.ops.convert_to_numpy(keras.ops.convert_to_tensor(variance)), 2047 / 2048)


def test_the_table_of_errors_is_one_that_holds() -> None:
    """Each figure of xhat.keras in the tables of the page."""
    for backend in ("jax", "torch"):
        block = re.search(rf"<!-- exactness on {backend}:start -->\n(.*?)<!--", PAGE, flags=re.DOTALL)
        assert block
        head, _, *rows = (line.strip("| ").split(" | ") for line in block[1].splitlines())
        ours = [column for column, title in enumerate(head) if title.endswith("xhat.keras")]
        assert len(rows) == 8 and len(ours) == 4
        assert all(float(row[column]) <= 5e-6 for row in rows for column in ours)
