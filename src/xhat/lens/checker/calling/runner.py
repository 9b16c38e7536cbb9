"""Runs the code under test on one probe, and returns every result as float64.

Nothing is judged here.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from xhat.lens.checker.calling import arrays
from xhat.lens.checker.calling.adapter import (
    NO_CACHE,
    Adapter,
    Unjudged,
    bind,
    cache_of,
    gradients_in,
    named_results,
    returned_state,
    takes,
)
from xhat.lens.checker.calling.names import GRADIENTS
from xhat.lens.checker.calling.runs import TRAINING, ArraySpec, Mode, Options, RunResult
from xhat.lens.checker.expected import reference
from xhat.lens.checker.expected.probes import Array, Probe

__all__ = ["Runner", "first_line"]

_FORWARD, _BACKWARD = ("x", "gamma", "beta"), ("dy", "cache")
_STATE = ("gamma", "beta", "running_mean", "running_var")


@dataclass
class Runner:
    """The code under test, and how to call it."""

    forward: Callable[..., Any] | None
    backward: Callable[..., Any] | None
    adapter: Adapter
    spec: ArraySpec

    @property
    def uses_cache(self) -> bool:
        """Whether the backward uses values that this forward computed."""
        if self.forward is None:
            return False
        return self.backward is None or self._backward_takes("cache")

    def takes(self, *quantities: str) -> bool:
        return takes(self.forward, self.adapter, *quantities) or self._backward_takes(*quantities)

    def _backward_takes(self, *quantities: str) -> bool:
        return takes(self.backward, self.adapter, *quantities, order=_BACKWARD)

    def run(self, p: Probe, correction: int = 0, *, mode: Mode = TRAINING) -> RunResult:
        """Run the code on a probe. Raises Unjudged if it fails; if only its backward fails, the result has the reason.

        correction: of the exact statistics passed to a backward.
        """
        result = RunResult()
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            values = self._values(p, correction, mode) | {"y": self._undefined(p.x)}
            cache = self._run_forward(p, values, result) if self.forward is not None else NO_CACHE
            try:
                if not mode.gradients:
                    pass
                elif self.backward is not None and mode.training:
                    given = self._values(p, correction, mode) | {"cache": cache}
                    given |= {
                        g: self._undefined(values[of]) for g, of in zip(GRADIENTS, _FORWARD, strict=True)
                    }
                    self._run_backward(p, given, result)
                elif self.backward is None and self.forward is not None:
                    fresh = self._values(p, correction, mode) | {"y": values["y"]}
                    self._differentiate(p, fresh, result)
            except Unjudged as problem:
                if self.forward is None:
                    raise
                expected = [g for g, of in zip(GRADIENTS, _FORWARD, strict=True) if self._affine(of)]
                result.unjudged = dict.fromkeys(expected, str(problem))
        result.read |= values["options"].read
        return result

    def run_twice(self, p: Probe, q: Probe) -> tuple[Array | None, Array | None]:
        """The running mean after a call on p, and after a second one on q that continues it."""
        assert self.forward is not None
        results = []
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            values, cache = self._values(p, 0, TRAINING), NO_CACHE
            for probe in (p, q):
                result = RunResult()
                if isinstance(cache, Mapping) or cache is NO_CACHE or not hasattr(self.forward, "again"):
                    values["x"] = self._array(probe.x)
                    cache = self._run_forward(probe, values, result)
                else:
                    held = self.forward.again(cache, self._array(probe.x))
                    result.running = {name: _numbers(value).ravel() for name, value in held.items()}
                results.append(result.running.get("running_mean"))
                if "running_mean" in result.running:
                    values["running_mean"] = self._array(
                        result.running["running_mean"].reshape(p.gamma.shape), "flat"
                    )
        return results[0], results[1]

    def _array(self, values: Array, style: str = "wide") -> Any:
        shaped = values.reshape(-1) if style == "flat" else values
        return arrays.make(shaped, self.spec.kind, self.spec.dtype)

    def _undefined(self, like: Any) -> Any:
        """An argument for a result, filled with NaN: what the code does not write shows."""
        return self._array(np.full(tuple(like.shape), np.nan))

    def _values(self, p: Probe, correction: int, mode: Mode) -> dict[str, Any]:
        spec, f = self.spec, reference.forward(p, correction)
        x, dy = (arrays.laid_out(self._array(v), spec.kind, spec.memory) for v in (p.x, p.dy))
        values: dict[str, Any] = {"x": x, "dy": dy}
        for name, style in zip(_STATE, (spec.parameters,) * 2 + (spec.running,) * 2, strict=True):
            values[name] = self._array(getattr(p, name), style)
        exact = {"mean": f.mu, "var": f.var, "std": 1 / f.rstd, "rstd": f.rstd}
        values |= {name: self._array(value, spec.statistics) for name, value in exact.items()}
        values |= {"xhat": self._array(f.xhat), "x - mu": self._array(p.x - f.mu), "y": self._array(f.y)}
        values |= {"eps": p.eps, "m": p.count(), "axis": p.layout.axis, "ndim": p.x.ndim}
        values |= {"training": mode.training, "evaluation": not mode.training, "mode": mode.word}
        if mode.momentum:
            values["momentum"] = p.momentum
        options = ("mode", "eps", "momentum", "running_mean", "running_var")
        values["options"] = Options({name: values[name] for name in options if name in values})
        return values

    def _call(
        self, title: str, function: Callable[..., Any], values: Mapping[str, Any], order: tuple[str, ...]
    ) -> Any:
        positional, keywords = bind(title, function, values, self.adapter, order)
        try:
            return function(*positional, **keywords)
        except Unjudged:
            raise
        except (Exception, SystemExit) as e:  # code that calls sys.exit must not end the checker
            shape = tuple(values["x"].shape)
            where = f"on x of shape {shape} ({self.spec.kind}, {self.spec.dtype})"
            text = f"{title} raised {type(e).__name__} {where}: {first_line(e)}"
            raise Unjudged(text, (1, _line_reached(e))) from e

    def _run_forward(self, p: Probe, values: dict[str, Any], result: RunResult) -> Any:
        assert self.forward is not None
        title = title_of(self.forward, "forward")
        returned = self._call(title, self.forward, values, _FORWARD)
        if returned is None and takes(self.forward, self.adapter, "y"):
            returned = {"y": values["y"]}
        running = (
            ("running_mean", "running_var") if self.takes("running_mean", "options") else ("mean", "var")
        )
        found = named_results(title, returned, self.adapter.forward_returns, ("y", *running), self.adapter)
        if "y" not in found:
            raise Unjudged(f"{title} returned {', '.join(found)}, expected y among them.", (2, 0))
        result.outputs["y"] = _sized(title, "y", found["y"], p.x.shape)
        result.dtypes.add(arrays.dtype_of(found["y"]))
        self._note_overwritten(title, ("x", "gamma", "beta"), p, values, result)
        for name in ("mean", "var", "running_mean", "running_var"):
            if (
                name in found
                and arrays.is_array(found[name])
                and np.size(value := _numbers(found[name])) == p.channels
            ):
                result.extra[name] = value
        is_unnamed = isinstance(returned, (tuple, list)) and not hasattr(returned, "_fields")
        result.named = self.adapter.forward_returns is not None or not is_unnamed
        self._observe_running(returned, p, values, result)
        return cache_of(returned, found)

    def _note_overwritten(
        self, title: str, names: tuple[str, ...], p: Probe, values: dict[str, Any], result: RunResult
    ) -> None:
        for name in names:
            if not np.array_equal(arrays.read(values[name]).ravel(), getattr(p, name).ravel()):
                result.notes.append(f"{title} overwrites {name}.")

    def _observe_running(self, returned: Any, p: Probe, values: dict[str, Any], result: RunResult) -> None:
        """Find running statistics that were updated in place, in the options, or returned."""
        nested = returned_state(returned, self.adapter) if self.takes("running_mean", "options") else {}
        for name in _STATE[2:]:
            before = getattr(p, name).ravel()
            for holder in (nested, values, values["options"], result.extra):
                after = _numbers(dict.__getitem__(holder, name)).ravel() if name in holder else before
                if holder is nested and after.size != p.channels:
                    continue
                if not np.array_equal(after, before):
                    result.running[name] = after
            result.extra.pop(name, None)

    def _run_backward(self, p: Probe, values: dict[str, Any], result: RunResult) -> None:
        assert self.backward is not None
        title = title_of(self.backward, "backward")
        if values["cache"] is NO_CACHE and self._backward_takes("cache"):
            why = "no forward was given" if self.forward is None else "its forward returns y alone"
            raise Unjudged(f"{title} asks for a cache, but {why}; give the forward that makes it.", (2, 0))
        returned = self._call(title, self.backward, values, _BACKWARD)
        written = {name: values[name] for name in GRADIENTS if self._backward_takes(name)}
        returned = written if returned is None and written else returned
        self._note_overwritten(title, ("dy",), p, values, result)
        returns = self.adapter.backward_returns
        found = gradients_in(title, returned, self.adapter)
        affine = [name for name, given in (("dgamma", "gamma"), ("dbeta", "beta")) if self._affine(given)]
        if returns is None and isinstance(returned, (tuple, list)) and 1 < len(found) < 1 + len(affine):
            raise Unjudged(
                f"{title} returned {len(found)} values, expected dx, {', '.join(affine)} "
                "(or dx alone); describe others with Adapter(backward_returns=...).",
                (2, 0),
            )
        for name, value in found.items():
            numbers = _sized(title, name, value, p.x.shape) if name == "dx" else _numbers(value)
            if numbers.size == 1:  # one number for all channels
                numbers = np.full(p.channels, float(numbers.ravel()[0]))
            result.outputs[name] = numbers
            result.dtypes.add(arrays.dtype_of(value))
        is_unnamed = isinstance(returned, (tuple, list)) and not hasattr(returned, "_fields")
        result.swappable = is_unnamed and returns is None and len(found) == len(GRADIENTS)

    def _affine(self, name: str) -> bool:
        """Whether the code has this parameter; assumed for a backward without a forward."""
        return takes(self.forward, self.adapter, name) if self.forward else True

    def _differentiate(self, p: Probe, fresh: dict[str, Any], result: RunResult) -> None:
        """The gradients of a forward without a backward, by automatic differentiation. Raises Unjudged without one."""
        forward = self.forward
        assert forward is not None
        if self.spec.kind == "numpy":
            return
        leaves = {name: fresh[name] for name in _FORWARD if name == "x" or self._affine(name)}

        def y_of(**given: Any) -> Any:
            returned = self._call("forward", forward, fresh | given, _FORWARD)
            return named_results("forward", returned, self.adapter.forward_returns, ("y",), self.adapter)["y"]

        try:
            found = arrays.gradient(y_of, leaves, fresh["dy"], self.spec.kind)
        except (Exception, SystemExit) as e:
            text = f"{type(e).__name__}: {first_line(e)}"
            own = getattr(forward, "own_backward", None)
            raise Unjudged(
                f"{own} raised {text}" if own else f"{self.spec.kind} can't differentiate the forward: {text}"
            ) from e
        if found is None:
            raise Unjudged(
                "no gradient flows from y to x: the graph is cut (no_grad, detach, or NumPy inside)"
            )
        result.outputs |= {name: arrays.read(value) for name, value in found.items()}


def first_line(e: BaseException) -> str:
    """The first line of the message of an exception."""
    text = str(e).strip().splitlines()
    return text[0] if text else "no message"


def _line_reached(e: BaseException) -> int:
    """The line that the code under test reached: that of the outermost frame outside this package."""
    frame = e.__traceback__
    while frame is not None:
        if not frame.tb_frame.f_globals.get("__name__", "").startswith("xhat.lens.checker."):
            return frame.tb_lineno
        frame = frame.tb_next
    return 0


def title_of(function: Callable[..., Any], role: str) -> str:
    name = getattr(function, "__name__", role)
    return role if name in ("<lambda>", role) else f"{role} ({name})"


def _numbers(value: Any) -> Array:
    try:
        return arrays.read(value)
    except (TypeError, ValueError):
        raise Unjudged(f"a result is a {type(value).__name__}, expected an array of numbers.") from None


def _sized(title: str, name: str, value: Any, shape: tuple[int, ...]) -> Array:
    numbers = _numbers(value)
    if numbers.shape != shape:
        raise Unjudged(
            f"{title} returned {name} of shape {numbers.shape}, expected {shape}, the shape of x.", (2, 0)
        )
    return numbers
