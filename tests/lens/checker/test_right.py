"""Right implementations in many styles pass, with every output that they compute judged.

The corpus is in corpus/right: what is compared with it is float64 mathematics, since each of its files was written from
the equations.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest

from xhat.lens import check

FOLDER = "lens.checker.corpus.right"
NEEDS = {"in_torch": "torch", "in_jax": "jax"}
FILES = ("numpy_flat", "numpy_images", "numpy_running", "numpy_layers", *NEEDS)
# JAX compiles every operation for every shape, so that other layouts are not tried here.
LAYOUT_IN_JAX = {"channels last": "NHWC"}
# What is found in the code, and is no mistake.
FOUND = {
    "relu inside": ("convention", "ReLU after it"),
    "leaky relu after it": ("convention", "leaky ReLU with slope 0.1 after it"),
    "the absolute value of gamma": ("convention", "|gamma| scales"),
    "one plus gamma": ("convention", "1 + gamma scales"),
    "an eps of its own": ("eps", "0.0002 in the code, inside the root"),
    "features in rows": ("channel axis", "0 (CN)"),
    "channels last": ("channel axis", "3 (NHWC)"),
    "volumes, channels last": ("channel axis", "4 (NDHWC)"),
    "options with momentum 0.999": ("momentum", "fixed, batch weighs 0.001"),
    "Cumulative": ("momentum", "cumulative average (first weight 1)"),
    "float32 inside": ("arrays", "numpy, float64 (float32 inside)"),
    "gamma alone": ("parameters", "gamma alone"),
    "the unbiased variance": ("variance", "N - 1"),
}


def cases(file: str) -> dict[str, tuple[Any, Any]]:
    found: dict[str, tuple[Any, Any]] = import_module(f"{FOLDER}.{file}").CASES
    return found


def names() -> list[tuple[str, str]]:
    files = [file for file in FILES if file not in NEEDS or find_spec(NEEDS[file])]
    return [(file, name) for file in files for name in cases(file)]


@pytest.mark.parametrize(("file", "name"), names())
def test_a_right_implementation_passes(file: str, name: str) -> None:
    verdict = check(*cases(file)[name], layout=LAYOUT_IN_JAX.get(name, "NC") if file == "in_jax" else None)
    assert verdict, str(verdict)
    outputs = {row.output for row in verdict.rows}
    forward, backward = cases(file)[name]
    has_backward = backward is not None or hasattr(forward, "backward") or file in NEEDS
    assert outputs >= ({"dx"} if has_backward else {"y"})
    told = any("evaluation" in text for text in (*outputs, *verdict.not_judged))
    assert told or forward is None
    if name in FOUND and file.startswith("numpy"):
        key, value = FOUND[name]
        assert verdict.conventions[key] == value


def test_the_corpus_is_large() -> None:
    assert len(names()) >= 48 + 12 * ("in_torch" in {file for file, _ in names()})
