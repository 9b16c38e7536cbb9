"""Repeated calls: run without the gate, they give what they give at the first time; what is remembered of them."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import oracle
import pytest
from conftest import ACTIVATIONS, DTYPES, LAYOUTS, Array
from repeated import LAYOUT, Case, anew, askew, contents, remembered, without_the_gate

import xhat
from xhat import ops

WALKED = [name for name, layout in LAYOUTS.items() if not layout.copied]
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "m - 1": {"correction": 1, "eps": 1e-3},
    "relu": {"activation": "relu"},
    "leaky_relu": {"activation": ("leaky_relu", 0.1)},
    "silu": {"activation": "silu"},
}


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", ["float64", "float32", "float16"])
@pytest.mark.parametrize("where", WALKED)
def test_a_repeated_call_gives_the_bits_of_a_first_one(where: str, name: str, options: str) -> None:
    """Of its own numbers, which are others than those of the call before."""
    layout, dtype, more = LAYOUTS[where], DTYPES[name], OPTIONS[options]
    for residual in (False, True) if "activation" in more else (False,):
        for out in (False, True):
            case = Case(layout, dtype, "again", residual)
            with anew():
                expected = contents(case.both(out, **more))
            with anew():
                Case(layout, dtype, "before", residual).both(out, **more)
                with without_the_gate():
                    assert contents(case.both(out, **more)) == expected


@pytest.mark.parametrize("where", ["NCHW", "NHWC", "(N, C), many", "two channel axes"])
@pytest.mark.parametrize("activation", ACTIVATIONS.values(), ids=ACTIVATIONS)
def test_a_repeated_call_gives_the_numbers_of_the_oracle(where: str, activation: Any) -> None:
    case = Case(LAYOUTS[where], np.float64)
    case.both(activation=activation)
    with without_the_gate():
        y, _, grads = case.both(activation=activation)
    options = case.options | {"activation": activation}
    assert oracle.worst(y, oracle.forward(case.x, case.gamma, case.beta, **options).y) < 1e-13
    expected = oracle.backward(case.dy, case.x, case.gamma, case.beta, **options)
    for got, right in zip(grads[:3], expected[:3], strict=True):
        assert oracle.worst(got, right) < 1e-12 * max(1, float(np.abs(right).max()))


@pytest.mark.parametrize("name", ["float64", "float32", "float16"])
@pytest.mark.parametrize("where", WALKED)
def test_a_repeated_evaluation_gives_the_bits_of_a_first_one(where: str, name: str) -> None:
    layout = LAYOUTS[where]
    case = Case(layout, DTYPES[name])
    mean, var = (np.full(layout.channels, v, np.float32) for v in (0.75, 2.5))

    def both() -> Any:
        y, context = ops.normalize_with_context(case.x, mean, var, case.gamma, case.beta, **case.options)
        return contents((y, context, xhat.batch_norm_backward(case.dy, context)))

    with anew():
        first = both()
        mean += 1
        var += 1
        with without_the_gate():
            again = both()
    with anew():
        assert again == both() != first


@pytest.mark.parametrize(
    "given", [(None, None), (np.float64, None), (None, np.float32), (np.float64, np.float32)]
)
def test_parameters_of_other_dtypes_and_none(given: Any) -> None:
    case = Case(LAYOUTS["NCHW"])
    case.gamma, case.beta = (
        None if dtype is None else p.astype(dtype)
        for p, dtype in zip((case.gamma, case.beta), given, strict=True)
    )
    with anew():
        first = contents(case.both())
        with without_the_gate():
            assert contents(case.both()) == first


# ------------------------------------------------------------------------------------------------ what is remembered


def test_gamma_and_beta_may_change_before_the_backward_pass() -> None:
    case = remembered()
    _, context, expected = case.both()
    context = case.forward()[1]
    case.gamma[...] = case.beta[...] = np.nan
    assert contents(xhat.batch_norm_backward(case.dy, context)) == contents(expected)


def test_no_array_is_kept_alive() -> None:
    case = Case(LAYOUT, residual=True)
    case.both(out=True, activation="silu")
    result = case.both(out=True, activation="silu")
    arrays = [case.x, case.dy, case.y, case.dx, case.gamma, case.beta, case.residual, result[1].mean.base]
    kept = [weakref.ref(a) for a in arrays if a is not None]
    del case, result, arrays
    gc.collect()
    assert [r() for r in kept] == [None] * 8


def test_not_everything_is_remembered_for_ever() -> None:
    """After thousands of other shapes the first one goes through the gate again."""
    with anew():
        x = np.random.default_rng(0).normal(size=(4200, 1)).astype(np.float32)
        expected = contents(xhat.batch_norm(x))
        with without_the_gate():
            assert contents(xhat.batch_norm(x)) == expected
        context = xhat.batch_norm(x)[1]
        for n in range(2, 4150):
            xhat.batch_norm_backward(x[:n], xhat.batch_norm(x[:n])[1])
        with without_the_gate(), pytest.raises(AssertionError, match="through the gate"):
            xhat.batch_norm(x)
        xhat.batch_norm_backward(x, context)
        for _ in range(2):
            assert contents(xhat.batch_norm(x)) == expected


def test_contexts_that_do_not_come_again_push_nothing_out() -> None:
    """A list goes through the gate each time, and has a form of its own, of which no backward pass is asked again."""
    with anew():
        case = remembered()
        for _ in range(4200):
            _, context = xhat.batch_norm(case.x, case.gamma.tolist(), case.beta, **case.options)
            xhat.batch_norm_backward(case.dy, context)
        with without_the_gate():
            case.both()


@pytest.mark.parametrize("copied", [lambda c: pickle.loads(pickle.dumps(c)), copy.copy, copy.deepcopy])
def test_a_copy_of_a_context_has_the_same_gradient(copied: Callable[[Any], Any]) -> None:
    case = remembered()
    _, context, expected = case.both()
    for _ in range(2):
        twin = copied(context)
        assert contents(twin) == contents(context)
        assert contents(xhat.batch_norm_backward(case.dy, twin)) == contents(expected)


def test_many_threads_at_once() -> None:
    """While they learn, while they repeat, and while all is forgotten."""
    shapes = [(n, 5) for n in range(2, 40)] * 3
    arrays = [
        np.random.default_rng(n).normal(size=shape).astype(np.float32) for n, shape in enumerate(shapes)
    ]

    def run(x: Array) -> Any:
        y, context = xhat.batch_norm(x, activation="silu")
        return contents((y, context, xhat.batch_norm_backward(x, context)))

    with anew():
        alone = [run(x) for x in arrays]

    def crowd(_: int) -> None:
        for n in range(2, 1500):
            xhat.batch_norm(np.ones((n, 1), np.float32))

    with anew(), ThreadPoolExecutor(8) as pool:
        crowds = pool.map(crowd, range(3))
        for _ in range(5):
            assert list(pool.map(run, arrays)) == alone
        assert list(crowds) == [None] * 3


def test_what_is_copied_masked_askew_or_has_no_buffer_goes_through_the_gate() -> None:
    """And so the search above, for calls that did not, would find one."""
    cropped, half, plain = Case(LAYOUTS["cropped"]), Case(LAYOUT, DTYPES["bfloat16"]), remembered()
    x, gamma, y = askew(plain.x), askew(plain.gamma), askew(plain.y)
    calls: list[Callable[[], Any]] = [
        cropped.forward,
        half.forward,
        lambda: plain.forward(mask=np.ones((6, 1, 1))),
        lambda: plain.forward(out=y),
        lambda: xhat.batch_norm(x, plain.gamma, plain.beta, axis=1),
        lambda: xhat.batch_norm(plain.x, gamma, plain.beta, axis=1),
    ]
    for call in calls:
        for _ in range(2):
            call()
        with without_the_gate(), pytest.raises(AssertionError, match="through the gate"):
            call()
