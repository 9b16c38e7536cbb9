"""Layers: a class with a forward, and perhaps a backward, as two functions for the checker.

Nothing is judged here. Each run constructs a layer, sets its parameters and running statistics, and reads them
afterwards. A PyTorch autograd Function is called through `apply`, so that its backward runs too.
"""

import inspect
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np

from xhat.lens.checker.calling import arrays, state
from xhat.lens.checker.calling.adapter import (
    Adapter,
    Unjudged,
    bind,
    bind_layer,
    is_listed,
    named_results,
    quantity,
)
from xhat.lens.checker.calling.arrays import kinds_for
from xhat.lens.checker.calling.construction import initialized, quantities_of
from xhat.lens.checker.calling.names import GRADIENTS, PASSES
from xhat.lens.checker.calling.state import STATE
from xhat.lens.checker.expected.probes import LAYOUTS

__all__ = ["Functions", "functions_of"]

_FIRST_CALLS = ("NC", "NCHW", "NHWC", "NCL")


class Functions(NamedTuple):
    """The forward and backward of a layer as functions, and its kind of array."""

    forward: Callable[..., Any]
    backward: Callable[..., Any] | None
    kind: str


def functions_of(layer: type, adapter: Adapter) -> Functions:
    """forward(x, gamma, beta, ...) returns y, the layer as cache, and the running statistics; backward(dy, cache).

    Raises Unjudged for a class without a forward, or one that can't be constructed from a number of channels.
    """
    if any(c.__module__ == "torch.autograd.function" for c in layer.__mro__[1:]):
        return Functions(_apply(layer), None, "torch")
    return _Layer(layer, adapter).functions()


def _apply(layer: Any) -> Callable[..., Any]:
    def forward(*arguments: Any) -> Any:
        return layer.apply(*arguments)

    parameters = list(inspect.signature(layer.forward).parameters.values())
    _set_signature(forward, f"{layer.__name__}.apply", parameters[1:])  # without ctx
    forward.own_backward = f"the backward of {layer.__name__}"  # type: ignore[attr-defined]
    return forward


def _set_signature(function: Any, name: str, parameters: list[inspect.Parameter]) -> None:
    function.__name__ = name
    function.__signature__ = inspect.Signature(parameters)


class _Layer:
    """A class under test: how it is constructed and called, and where it keeps its arrays."""

    def __init__(self, layer: type, adapter: Adapter) -> None:
        self.layer = layer
        self.adapter = adapter
        self.steps = {
            role: next((n for n in names if _own(layer, n)), None) for role, names in PASSES.items()
        }
        if self.steps["forward"] is None:
            raise Unjudged(f"class {layer.__name__} has no forward and no __call__.")
        used = [getattr(layer, self.steps["forward"]), vars(layer).get("__init__")]
        self.kind = kinds_for([f for f in used if f is not None], adapter.arrays)[0]
        self.given = quantities_of(layer, adapter)
        self.sample: Any = None
        made = self._construct(3, {})
        self.places, self.guessed = state.parameters(made, adapter)
        called = self._called_once(made)
        later, guessed = state.parameters(called, adapter)
        new = {q: place for q, place in later.items() if q not in {*self.places, *guessed}}
        self.late = bool(new) or not {"gamma", "beta"} & {*self.places, *self.given.values()}
        if self.late:
            made, self.places = called, self.places | new
        self._identify(called, self.sample)
        self.options = self._options(made)

    def _construct(self, channels: int, values: dict[str, Any]) -> Any:
        ones = arrays.make(np.ones(channels), self.kind, "float64")
        usual = {"channels": channels, "gamma": ones, "beta": 0 * ones, "ndim": 2}
        required = {"gamma", "beta"} & set(self.given.values())
        values = {q: v for q, v in usual.items() if q in ("channels", "ndim") or q in required} | values
        chosen = {name: values[q] for name, q in self.given.items() if q in values}
        listed = "channels" not in self.given.values() and is_listed(self.layer)
        try:
            return initialized(self.layer(*[channels] * listed, **chosen), channels)
        except Exception as e:
            shown = ", ".join(f"{name}={value}" for name, value in chosen.items())
            raise Unjudged(f"{self.layer.__name__}({shown}) raised {type(e).__name__}: {e}") from e

    def _called_once(self, made: Any) -> Any:
        """A layer that makes its parameters at its first call, after it; the one given if no batch fits."""
        for layout in _FIRST_CALLS:
            shape = LAYOUTS[layout].shapes[0]
            x = arrays.make(np.random.default_rng(0).normal(size=shape), self.kind, "float64")
            with suppress(Exception):
                fresh = self._construct(shape[LAYOUTS[layout].axis], {})
                self._call(fresh, _first_call(x))
                self.sample = x
                return fresh
        return made

    def _identify(self, made: Any, x: Any) -> None:
        """Find parameters with unknown names by their effect on y. Raises Unjudged if there may still be one."""
        if x is None or {"gamma", "beta"} <= {*self.places, *self.given.values()}:
            return

        def y() -> Any:
            returned = self._call(made, _first_call(arrays.copied(x)))
            return named_results("forward", returned, self.adapter.forward_returns, ("y",), self.adapter)["y"]

        arrays_left = state.unknown(made, self.adapter, 3)
        with suppress(Exception):
            self.places |= {
                q: p for q, p in state.by_effect(made, arrays_left, y).items() if q not in self.places
            }
        left = [
            p
            for p in arrays_left
            if p not in self.places.values() and (arrays.read(arrays_left[p]) == 1).all()
        ]
        if left and "gamma" not in {*self.places, *self.given.values()}:
            names = " or ".join(".".join(place) for place in left)
            raise Unjudged(
                f"gamma could not be set: it may be {names} of {self.layer.__name__}; "
                "describe the attributes with Adapter(names={...})."
            )

    def _options(self, made: Any) -> dict[str, str | None]:
        """eps and momentum: set in the constructor (None), or as this attribute."""
        found: dict[str, str | None] = {}
        for name, value in getattr(made, "__dict__", {}).items():
            q = quantity(name, self.adapter)
            if q in ("eps", "momentum") and isinstance(value, float):
                found[q] = name
        found |= {q: None for q in ("eps", "momentum") if q in self.given.values()}
        return found

    def _call(self, made: Any, values: dict[str, Any]) -> Any:
        step = (
            made
            if self.steps["forward"] == "__call__" or callable(made)
            else getattr(made, self.steps["forward"] or "")
        )
        positional, keywords = bind_layer(step, values, self.adapter)
        return step(*positional, **keywords)

    def _prepared(self, given: dict[str, Any]) -> Any:
        """A layer with these parameters, statistics and options."""
        chosen = {q: given[q] for q in self.options if given.get(q) is not None and self.options[q] is None}
        chosen |= {q: given[q] for q in STATE if q in self.given.values() and given.get(q) is not None}
        shapes = (tuple(given[q].shape) for q in STATE if given.get(q) is not None)
        channels = max((max(shape) for shape in shapes if shape), default=3)
        made = self._construct(channels, {"ndim": given["x"].ndim, **chosen})
        if self.late:
            self._call(
                made,
                {
                    **given,
                    "x": arrays.copied(given["x"]),
                    "training": True,
                    "evaluation": False,
                    "mode": "train",
                },
            )
        for q, place in self.places.items():
            state.put(made, place, given[q])
        for q, name in self.options.items():
            if name is not None and given.get(q) is not None:
                setattr(made, name, given[q])
        _set_mode(made, given.get("training", True))
        return made

    def functions(self) -> Functions:
        def forward(**given: Any) -> dict[str, Any]:
            return self._run_forward(given)

        def again(made: Any, x: Any) -> dict[str, Any]:
            self._call(made, _first_call(x))
            return self._running(made)

        def backward(dy: Any, cache: Any) -> dict[str, Any]:
            return self._run_backward(dy, cache)

        forward.again = again  # type: ignore[attr-defined]
        forward.guessed = self.guessed  # type: ignore[attr-defined]
        name, only = self.layer.__name__, inspect.Parameter.KEYWORD_ONLY
        made = [*self.places, *(q for q in STATE[:2] if q in self.given.values() and q not in self.places)]
        given = [inspect.Parameter(q, only) for q in ("x", *made)]
        given += [inspect.Parameter(q, only, default=None) for q in self.options]
        if self._has_mode():
            given += [inspect.Parameter(q, only, default=True) for q in ("training", "mode")]
        _set_signature(forward, f"{name}.{self.steps['forward']}", given)
        both = [inspect.Parameter(q, inspect.Parameter.POSITIONAL_OR_KEYWORD) for q in ("dy", "cache")]
        _set_signature(backward, f"{name}.{self.steps['backward']}", both)
        return Functions(forward, backward if self.steps["backward"] else None, self.kind)

    def _run_forward(self, given: dict[str, Any]) -> dict[str, Any]:
        made, training = self._prepared(given), given.get("training", True)
        mode = given.get("mode", "train")
        values = {"x": given["x"], "training": training, "evaluation": not training, "mode": mode}
        returns = self.adapter.forward_returns
        y = named_results("forward", self._call(made, values), returns, ("y",), self.adapter)["y"]
        for q in ("gamma", "beta"):
            if q in self.places and training:
                self._expect_kept(made, q, given[q])
        return {"y": y, "cache": made, **self._running(made)}

    def _run_backward(self, dy: Any, made: Any) -> dict[str, Any]:
        step = getattr(made, self.steps["backward"] or "")
        positional, keywords = bind("backward", step, {"dy": dy}, self.adapter, ("dy",))
        places = {q: self.places[q] for q in STATE[:2] if q in self.places}
        before = {q: arrays.copied(state.value_at(made, place)) for q, place in places.items()}
        result = step(*positional, **keywords)
        held: dict[str, Any] = {}
        if hasattr(made, "initialize"):  # the parameters have moved by their gradients
            held = {f"d{q}": before[q] - state.value_at(made, place) for q, place in places.items()}
        held |= state.gradients(made, self.adapter)
        if result is None and held:
            return held
        found = named_results("backward", result, self.adapter.backward_returns, GRADIENTS, self.adapter)
        return held | {q: value for q, value in found.items() if value is not None}

    def _running(self, made: Any) -> dict[str, Any]:
        return {q: state.value_at(made, self.places[q]) for q in STATE[2:] if q in self.places}

    def _expect_kept(self, made: Any, q: str, value: Any) -> None:
        """Raise Unjudged if the call replaced a parameter: then y is of another gamma than the one that was set."""
        now = arrays.read(state.value_at(made, self.places[q])).ravel()
        if not np.array_equal(now, arrays.read(value).ravel()):
            raise Unjudged(
                f"{q} could not be set: the layer replaces {'.'.join(self.places[q])} when it is called.",
                (2, 0),
            )

    def _has_mode(self) -> bool:
        made = self._construct(3, {})
        if any(quantity(name, self.adapter) in ("training", "evaluation", "mode") for name in vars(made)):
            return True
        step = getattr(self.layer, self.steps["forward"] or "")
        roles = {quantity(name, self.adapter) for name in inspect.signature(step).parameters}
        return bool(roles & {"training", "evaluation", "mode"})


def _first_call(x: Any) -> dict[str, Any]:
    """The arguments of a call that makes the parameters."""
    return {"x": x, "training": True, "evaluation": False, "mode": "train"}


def _own(layer: type, name: str) -> bool:
    """Whether a class defines this method, `type.__call__` excepted."""
    return any(name in vars(c) for c in layer.__mro__ if c is not object)


def _set_mode(made: Any, training: bool) -> None:
    """Training or evaluation, by a method or by an attribute."""
    method = getattr(made, "train" if training else "eval", None)
    if callable(method) and not training:
        with suppress(TypeError):
            method()
    for name, value in list(getattr(made, "__dict__", {}).items()):
        q = quantity(name, Adapter())
        if q in ("training", "evaluation") and isinstance(value, bool):
            setattr(made, name, training == (q == "training"))
        elif q == "mode" and isinstance(value, str):
            setattr(made, name, "train" if training else "test")
