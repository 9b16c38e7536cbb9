"""Calling somebody's code: names that are known, names that are described, and the order of results."""

from typing import Any

import pytest
from lens.specimens import closed

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
        "forward (strange) asks for 'two', and the checker has don't know what it is; "
        "describe it: Adapter(names={'two': 'x'}), or wrap the function."
    )


def test_arguments_of_the_checker_itself_are_checked() -> None:
    with pytest.raises(ArgumentError, match="got neither forward nor backward"):
        check()
    with pytest.raises(ArgumentError, match="like is 'caffe', expected 'torch' or 'keras'"):
        check(forward, like="caffe")
    with pytest.raises(ArgumentError, match="forward is 3, expected a function"):
        check(3)  # type: ignore[arg-type]
