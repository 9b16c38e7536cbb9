"""Calling conventions: known names, described names, and the order of results."""

from typing import Any

import numpy as np
import pytest
from lens.checker.specimens import closed

from xhat.errors import ArgumentError
from xhat.lens import Adapter, check

forward, backward = closed.forward, closed.backward


def test_the_order_of_results_is_found() -> None:
    verdict = check(
        forward, lambda dout, cache: (lambda dx, dgamma, dbeta: (dx, dbeta, dgamma))(*backward(dout, cache))
    )
    assert verdict and "The backward returns dbeta before dgamma." in verdict.notes


def test_an_adapter_describes_any_signature() -> None:
    def strange(one: Any, two: Any, three: Any, four: float) -> Any:
        y, cache = forward(one, two, three, four)
        return cache, y

    adapter = Adapter(
        names={"one": "x", "two": "gamma", "three": "beta", "four": "eps"}, forward_returns=("cache", "y")
    )
    assert check(strange, backward, adapter=adapter)
    assert check(strange).problem == (
        "forward (strange) asks for 'two', which the checker doesn't know; "
        "describe it with Adapter(names={'two': ...}), or wrap the function in one with known names."
    )


def test_arguments_of_the_checker_are_validated() -> None:
    with pytest.raises(ArgumentError, match="got neither forward nor backward"):
        check()
    with pytest.raises(ArgumentError, match="like is 'caffe', expected 'torch' or 'keras'"):
        check(forward, like="caffe")
    with pytest.raises(ArgumentError, match="forward is 3, expected a function"):
        check(3)  # type: ignore[arg-type]


def test_a_cache_may_be_none_but_must_be_returned() -> None:
    def alone(x: Any, gamma: Any, beta: Any, eps: float) -> Any:
        return forward(x, gamma, beta, eps)[0]

    verdict = check(lambda x, gamma, beta, eps: (alone(x, gamma, beta, eps), None), lambda dy, cache: dy)
    assert verdict.status == 1
    verdict = check(alone, lambda dy, cache: dy)
    assert (verdict.right, verdict.status) == (None, 2)
    assert verdict.headline == (
        "forward (alone) and backward: y right; dx, dgamma, dbeta not judged: "
        "backward asks for a cache, but its forward returns y alone; give the forward that makes it."
    ).replace("forward (alone)", "alone")


def test_a_forward_that_overwrites_its_input_gets_a_note() -> None:
    def centring(x: Any, gamma: Any, beta: Any, eps: float) -> Any:
        x -= x.mean(0)
        return gamma * x / np.sqrt((x**2).mean(0) + eps) + beta

    verdict = check(centring)
    assert verdict and verdict.notes == ("forward (centring) overwrites x.",)
