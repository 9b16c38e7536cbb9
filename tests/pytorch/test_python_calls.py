"""How far a call of a layer is from the kernels: Python calls of the package, and the files that they are in."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

import xhat
import xhat.torch as xt

PACKAGE = str(Path(xhat.__file__).parent)


def calls_in(function: Callable[[], Any]) -> list[tuple[str, str]]:
    """File and name of every Python function of the package that this one calls, generator expressions included."""
    found = []

    def profile(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE):
            found.append((code.co_filename.removeprefix(PACKAGE), code.co_name))

    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
    return found


@pytest.mark.parametrize("shape", [(32, 16), (8, 16, 4, 4)])
def test_a_warm_training_step_is_short(shape: tuple[int, ...]) -> None:
    layer = {2: xt.BatchNorm1d, 4: xt.BatchNorm2d}[len(shape)](16)
    x, dy = torch.randn(shape, requires_grad=True), torch.randn(shape)
    layer(x).backward(dy)
    outputs = []
    forward = calls_in(lambda: outputs.append(layer(x)))
    backward = calls_in(lambda: outputs[0].backward(dy))
    assert 5 < len(forward) <= 20, forward
    assert len({file for file, _ in forward}) <= 5, forward
    assert 3 < len(backward) <= 15, backward


def test_the_first_call_of_a_kind_makes_a_plan_and_is_longer() -> None:
    layer, x = xt.BatchNorm1d(7), torch.randn(11, 7)
    first, second = calls_in(lambda: layer(x)), calls_in(lambda: layer(x))
    assert any(file.endswith("plan.py") for file, _ in first)
    assert not any(file.endswith("plan.py") for file, _ in second)
    assert len(first) > len(second)
