"""The cache of plans: what a plan holds, and that neither errors nor arrays are in it."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from conftest import Array
from plans import LAYOUT, Case, contents, no_plans, planned, warm

import xhat
from xhat.errors import ArgumentError, ShapeError
from xhat.plan import plan_of


def test_gamma_and_beta_may_change_before_the_backward_pass() -> None:
    case = warm()
    _, context, expected = case.both()
    context = case.forward()[1]
    case.gamma[...] = case.beta[...] = np.nan
    assert contents(xhat.batch_norm_backward(case.dy, context)) == contents(expected)


def test_a_plan_keeps_no_array_alive() -> None:
    case = Case(LAYOUT, residual=True)
    case.both(out=True, activation="silu")
    result = case.both(out=True, activation="silu")
    arrays = [case.x, case.dy, case.y, case.dx, case.gamma, case.beta, case.residual, result[1].mean.base]
    kept = [weakref.ref(a) for a in arrays if a is not None]
    del case, result, arrays
    gc.collect()
    assert [r() for r in kept] == [None] * 8


def test_the_cache_is_bounded_and_plans_are_made_again() -> None:
    with no_plans():
        x = np.random.default_rng(0).normal(size=(4200, 1)).astype(np.float32)
        expected = contents(xhat.batch_norm(x))
        with planned():
            assert contents(xhat.batch_norm(x)) == expected
        for n in range(2, 4150):
            xhat.batch_norm(x[:n])
        with pytest.raises(AssertionError), planned():
            xhat.batch_norm(x)
        assert contents(xhat.batch_norm(x)) == expected


def test_an_error_is_not_cached() -> None:
    case = warm()
    for _ in range(3):
        before = plan_of.cache_info()
        with pytest.raises(ArgumentError, match="eps is 0"):
            case.forward(eps=0)
        assert plan_of.cache_info().currsize == before.currsize


@pytest.mark.parametrize("copied", [lambda c: pickle.loads(pickle.dumps(c)), copy.copy, copy.deepcopy])
def test_a_copy_of_a_context_has_the_same_gradient(copied: Callable[[Any], Any]) -> None:
    case = warm()
    _, context, expected = case.both()
    twin = copied(context)
    assert contents(twin) == contents(context)
    assert contents(xhat.batch_norm_backward(case.dy, twin)) == contents(expected)


def test_many_threads_at_once() -> None:
    """While plans are made, found, and dropped from the cache."""
    shapes = [(n, 5) for n in range(2, 40)] * 3
    arrays = [
        np.random.default_rng(n).normal(size=shape).astype(np.float32) for n, shape in enumerate(shapes)
    ]

    def run(x: Array) -> Any:
        y, context = xhat.batch_norm(x, activation="silu")
        return contents((y, context, xhat.batch_norm_backward(x, context)))

    def crowd(_: int) -> None:
        for n in range(2, 1500):
            xhat.batch_norm(np.ones((n, 1), np.float32))

    with no_plans():
        alone = [run(x) for x in arrays]
    with no_plans(), ThreadPoolExecutor(8) as pool:
        crowds = pool.map(crowd, range(3))
        for _ in range(5):
            assert list(pool.map(run, arrays)) == alone
        assert list(crowds) == [None] * 3


class Changing:
    """A number that may change, and that equals every other one."""

    def __init__(self, value: float) -> None:
        self.value = value

    def __float__(self) -> float:
        return self.value

    def __eq__(self, other: object) -> bool:
        return True

    def __hash__(self) -> int:
        return 0


@pytest.mark.parametrize("name", ["eps", "activation"])
def test_an_option_that_may_change_is_read_by_each_call(name: str) -> None:
    def y_for(value: Any) -> Any:
        return contents(xhat.batch_norm(x, **{name: value if name == "eps" else ("leaky_relu", value)})[0])

    with no_plans():
        x = Case(LAYOUT).x
        number = Changing(0.5)
        for value in (0.5, 2.0):
            number.value = value
            assert y_for(number) == y_for(Changing(value)) == y_for(value)


def test_an_axis_that_equals_an_int_is_none() -> None:
    with no_plans():
        x = Case(LAYOUT).x
        xhat.batch_norm(x, axis=(1,))
        with pytest.raises(ShapeError, match=r"axis is \(1.0,\)"):
            xhat.batch_norm(x, axis=(1.0,))  # type: ignore[arg-type]


def test_an_option_whose_hash_raises() -> None:
    with pytest.raises(ArgumentError, match="eps is <memory"):
        xhat.batch_norm(Case(LAYOUT).x, eps=memoryview(bytearray(4)))  # type: ignore[arg-type]


def test_a_slope_that_is_true_is_refused_after_one_that_is_equal_to_it() -> None:
    """True equals 1.0, as a key of a dictionary too."""
    x = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    with no_plans():
        for slope in (1.0, 1):
            xhat.batch_norm(x, activation=("leaky_relu", slope))
            for equal in (True, np.bool_(True)):
                with pytest.raises(ArgumentError, match="leaky_relu has slope"):
                    xhat.batch_norm(x, activation=("leaky_relu", equal))
