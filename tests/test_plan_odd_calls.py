"""A call that is odd in some way has the same outcome whether or not plans of other calls are cached, word for word."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from conftest import Array
from hypothesis import given
from hypothesis import strategies as st
from plans import (
    FORMS,
    LAYOUT,
    Case,
    beside,
    contents,
    locked,
    no_plans,
    outcome,
    planned,
    swapped,
    warm,
)

import xhat
from xhat import ops
from xhat.errors import ContextError, DegenerateBatchError, DtypeError, OutputError

FORWARD: dict[str, dict[str, Any]] = {
    **{f"axis {v!r}": {"axis": v} for v in (1.0, True, -2, 0, 3, (1,), (0, 1), np.int64(1), "1", None, 10**30)},
    **{f"eps {v!r}": {"eps": v} for v in (float("nan"), 0, 0.0, -1e-5, 1, True, "1", None, np.float32(1e-5), 1e-4)},
    **{f"correction {v!r}": {"correction": v} for v in (1, 2, True, 0.0, None, np.int64(0))},
    **{f"activation {v!r}": {"activation": v}
       for v in ("relu", "silu", "rel\udce9", ["relu"], ("leaky_relu", 0.1), ("leaky_relu", -0.0), ("leaky_relu", -1.0),
                 ("leaky_relu", (1,)), ("leaky_relu",), True)},
}  # fmt: skip


def alike(odd: Callable[[Case], Any], wrong: type[Exception] | None = None) -> None:
    """An odd call, made twice, has the outcomes after good calls that a first one has, and leaves the same behind."""
    after = []
    for cache in (nullcontext, no_plans):
        with no_plans():
            case = warm() if cache is nullcontext else Case(LAYOUT)
            # Whatever was written before is forgotten.
            case.y, case.dx = np.full_like(case.x, 7), np.full_like(case.x, 7)
            found = []
            for _ in range(2):
                with cache():
                    found.append(outcome(lambda case=case: odd(case)))
            after.append((found, *(contents(a) for a in (case.x, case.dy, case.y, case.dx, case.gamma))))
    assert after[0] == after[1]
    if wrong is not None:
        assert issubclass(after[0][0][0][0][0], wrong)


@pytest.mark.parametrize("options", FORWARD.values(), ids=FORWARD)
def test_other_options_are_seen(options: dict[str, Any]) -> None:
    alike(lambda case: case.forward(**options))
    alike(lambda case: case.forward(**options, out=case.y))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("place", ["x", "gamma", "beta", "residual"])
def test_other_inputs_are_seen(place: str, form: Callable[[Array], Any]) -> None:
    def odd(case: Case) -> Any:
        arrays = {"x": case.x, "gamma": case.gamma, "beta": case.beta, "residual": None}
        arrays[place] = form(case.dy if place == "residual" else arrays[place])
        return xhat.batch_norm(**arrays, axis=1)

    alike(odd)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_other_places_and_gradients_are_seen(form: Callable[[Array], Any]) -> None:
    alike(lambda case: case.forward(out=form(case.y)))
    alike(lambda case: xhat.batch_norm_backward(form(case.dy), case.forward()[1]))
    alike(lambda case: xhat.batch_norm_backward(case.dy, case.forward()[1], out=form(case.dx)))
    alike(lambda case: xhat.batch_norm_backward(case.dy, case.forward()[1], out=(form(case.dx), None)))


@pytest.mark.parametrize("step", [1, -1, 5, 119])
def test_places_that_touch_an_input_are_refused(step: int) -> None:
    def forward(case: Case) -> Any:
        case.x, out = beside(case.x, step)
        return case.forward(out=out)

    def dx_over_dy(case: Case) -> Any:
        case.dy, out = beside(case.dy, step)
        return xhat.batch_norm_backward(case.dy, case.forward()[1], out=out)

    def dx_over_x(case: Case) -> Any:
        case.x, out = beside(case.x, step)
        return xhat.batch_norm_backward(case.dy, case.forward()[1], out=out)

    for odd in (forward, dx_over_dy, dx_over_x):
        alike(odd, OutputError)
    alike(lambda case: xhat.batch_norm_backward(case.dy, case.forward()[1], out=case.x), OutputError)


def test_places_next_to_an_input_are_taken() -> None:
    case = warm()
    case.x, case.y = beside(case.x, case.x.size)
    with no_plans():
        expected = contents(case.forward(out=case.y))
    with planned():
        assert contents(case.forward(out=case.y)) == expected


@pytest.mark.parametrize("activation", [None, "relu", "silu"])
def test_places_that_touch_a_residual_or_each_other_are_refused(activation: Any) -> None:
    more = {"activation": activation}

    def case_of() -> Case:
        case = Case(LAYOUT, residual=True)
        for out, places in ((False, True), (True, True), (False, False)):
            case.both(out, places, **more)
        return case

    def over_the_residual(_: Case) -> Any:
        case = case_of()
        return case.forward(out=case.residual, **more)

    def over(name: str) -> Callable[[Case], Any]:
        def odd(_: Case) -> Any:
            case = case_of()
            context = case.forward(**more)[1]
            dx, dresidual = case.dx, case.dresidual
            pairs = {"dx": (dx, dx), "dy": (dx, case.dy), "x": (dx, case.x), "extra": (context.saved, dresidual),
                     "locked": (dx, locked(dresidual)), "extra second": (dx, context.saved)}  # fmt: skip
            return xhat.batch_norm_backward(case.dy, context, out=pairs[name])

        return odd

    for odd in (over_the_residual, over("dx"), over("dy"), over("x"), over("locked")):
        alike(odd, OutputError)
    for odd in (over("extra"), over("extra second")):
        alike(odd, OutputError if activation else None)


def test_interleaved_places_are_taken() -> None:
    def odd(case: Case) -> Any:
        room = np.zeros((6, 5, 8), np.float32)
        case.x, case.y = room[..., ::2], room[..., 1::2]
        case.x[...] = case.dy
        for _ in range(2):
            found = case.both(out=False), case.forward(out=case.y)
        return found

    alike(odd)


def test_y_over_x_is_run_again_and_has_no_gradient() -> None:
    with no_plans():
        case = warm()
        expected, _ = case.forward()
        with planned():
            y, context = case.forward(out=case.x)
        assert y is case.x
        assert np.array_equal(y, expected)
        with pytest.raises(ContextError, match="wrote y over x"):
            xhat.batch_norm_backward(case.dy, context)


def test_dx_over_dy_is_run_again() -> None:
    case = warm()
    expected = case.both()[2].dx
    context = case.forward()[1]
    dy = case.dy.copy()
    with planned():
        assert xhat.batch_norm_backward(dy, context, out=dy).dx is dy
    assert np.array_equal(dy, expected)


@pytest.mark.parametrize("value", [-1e-300, -np.inf, np.nan, -0.0, 0.0, np.inf])
def test_given_variances_are_looked_at_each_time(value: float) -> None:
    def odd(case: Case) -> Any:
        mean, var = np.zeros(5), np.ones(5)
        for v in (1.0, 1.0, value):
            var[3] = v
            found = ops.normalize_with_context(case.x, mean, var, case.gamma, case.beta)
        return found

    alike(odd)
    with no_plans():
        assert (type(outcome(lambda: odd(Case(LAYOUT)))[0]) is tuple) == (value < 0)


def test_a_variance_of_bfloat16_may_be_nan_without_a_warning() -> None:
    x, var = np.ones((4, 2), np.float32), np.array([np.nan, 1], ml_dtypes.bfloat16)
    result, warned = outcome(lambda: xhat.normalize(x, np.zeros(2, np.float32), var))
    assert type(result) is tuple
    assert warned == []


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_other_statistics_are_seen(form: Callable[[Array], Any]) -> None:
    def odd(case: Case) -> Any:
        mean, var = np.zeros(5, np.float32), np.ones(5, np.float32)
        xhat.normalize(case.x, mean, var)
        return outcome(lambda: xhat.normalize(case.x, form(mean), var)), outcome(
            lambda: xhat.normalize(case.x, mean, form(var))
        )

    alike(odd)


def test_a_gradient_that_float32_does_not_hold_is_told_as_numpy_tells_it() -> None:
    def odd(case: Case) -> Any:
        context = case.forward()[1]
        return xhat.batch_norm_backward(np.full_like(case.dy, 3e38), context)

    alike(odd)
    with no_plans():
        warm()
        assert outcome(lambda: odd(Case(LAYOUT)))[1] == ["overflow encountered in cast"]


def test_no_context_or_another_is_seen() -> None:
    alike(lambda case: xhat.batch_norm_backward(case.dy, None), ContextError)  # type: ignore[arg-type]
    alike(lambda case: xhat.batch_norm_backward(case.dy, case.forward(axis=0)[1]))
    alike(lambda case: xhat.batch_norm_backward(case.dy, case.forward(correction=1)[1]))
    alike(lambda case: xhat.batch_norm_backward(case.dy, case.forward(mask=np.ones((6, 1, 1)) * 2)[1]))
    alike(lambda case: xhat.batch_norm_backward(case.dy, case.forward()[1], out=(case.dx,)), OutputError)
    alike(lambda case: xhat.batch_norm_backward(case.dy, case.forward()[1], out=(None, case.dx)), OutputError)


def test_the_worst_mistakes_are_refused() -> None:
    """The neighbour of the tests above, which compare: here the outcome is written down."""
    with no_plans():
        case = warm()
        with pytest.raises(OutputError, match="read-only"):
            case.forward(out=locked(case.y))
        with pytest.raises(DtypeError, match="dy has dtype int32"):
            xhat.batch_norm_backward(case.dy.view(np.int32), case.forward()[1])
        with pytest.raises(DtypeError, match="byte order"):
            xhat.batch_norm(swapped(case.x), case.gamma, case.beta)
        with pytest.raises(DegenerateBatchError, match="one value"):
            xhat.batch_norm(case.x[:1, :, :1], case.gamma, case.beta)


# --------------------------------------------------------------------------------------------- any calls in any order

ANY_FORM = st.sampled_from(["as it is"] * 6 + list(FORMS))
CALL = st.fixed_dictionaries({
    "x": ANY_FORM, "gamma": ANY_FORM, "beta": ANY_FORM, "dy": ANY_FORM, "shape": st.sampled_from([(6, 5), (6, 5, 4)]),
    "out": st.sampled_from([None, "y", "x", "beside", *FORMS]), "dx": st.sampled_from([None, "dy", "dx", "x", *FORMS]),
    "residual": st.booleans(),
    "options": st.fixed_dictionaries({}, optional={
        "axis": st.sampled_from([1, 1.0, True, -1, 0, (0, 1)]), "eps": st.sampled_from([1e-5, 1, 1.0, True, 0, -1.0]),
        "correction": st.sampled_from([0, 1, 0.0, True, 2]),
        "activation": st.sampled_from(["relu", "silu", ("leaky_relu", 0.0), ("leaky_relu", -0.0), ("leaky_relu", 1)]),
    }),
})  # fmt: skip


def made(call: dict[str, Any]) -> Any:
    """The outcome of one call, forward and backward, on numbers that are always the same."""
    rng = np.random.default_rng(0)
    x, dy, r, y, dx = rng.normal(size=(5, *call["shape"])).astype(np.float32)
    gamma, beta = rng.normal(size=(2, 5)).astype(np.float32)

    def formed(name: str, array: Array) -> Any:
        return FORMS[call[name]](array) if call[name] in FORMS else array

    if call["out"] == "beside":
        x, y = beside(x)
    x_, dy_ = formed("x", x), formed("dy", dy)
    out = {"y": y, "beside": y, "x": x_, None: None}.get(call["out"], formed("out", y))
    options = call["options"] | {"residual": r if call["residual"] else None}

    def both() -> Any:
        result = xhat.batch_norm(x_, formed("gamma", gamma), formed("beta", beta), out=out, **options)
        place = {"dy": dy_, "dx": dx, "x": x, None: None}.get(call["dx"], formed("dx", dx))
        return result, xhat.batch_norm_backward(dy_, result[1], out=place)

    return outcome(both), contents(x), contents(dy), contents(y), contents(dx)


@given(st.lists(CALL, min_size=2, max_size=5))
def test_no_call_depends_on_those_before(calls: list[dict[str, Any]]) -> None:
    with no_plans():
        together = [made(call) for call in calls + calls]
    alone = []
    for call in calls:
        with no_plans():
            alone.append(made(call))
    assert together == alone + alone
