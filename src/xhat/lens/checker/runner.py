"""Runs the code under test on one probe, and returns every result as float64.

Nothing is judged here. An `ArraySpec` describes the arrays that are passed in.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np

from xhat.lens.checker import arrays, reference
from xhat.lens.checker.adapter import NO_CACHE, Adapter, Unjudged, bind, cache_of, named_results, takes
from xhat.lens.checker.probes import Array, Probe

__all__ = ["ArraySpec", "RunResult", "Runner", "array_specs"]

_FORWARD, _BACKWARD = ("x", "gamma", "beta"), ("dy", "cache")
_GRADIENTS = ("dx", "dgamma", "dbeta")


@dataclass(frozen=True)
class ArraySpec:
    """The arrays of a run: package, dtype, layout, and the shapes of parameters and of statistics.

    "flat" arrays have the shape of the channels, "wide" ones broadcast against x.
    """

    kind: str
    dtype: str
    layout: str
    parameters: str = "flat"
    statistics: str = "flat"
    memory: str = "contiguous"  # of x and dy: see `arrays.laid_out`


def array_specs(
    kinds: tuple[str, ...], dtypes: tuple[str, ...], layouts: tuple[str, ...]
) -> Iterator[ArraySpec]:
    """All specs to try, the most usual ones first."""
    styles = (("flat", "flat"), ("wide", "wide"), ("flat", "wide"))
    for layout, kind, dtype, style in product(layouts, kinds, dtypes, styles):
        if arrays.holds(kind, dtype):
            yield ArraySpec(kind, dtype, layout, *style)


@dataclass
class RunResult:
    """The results of one run; ``running`` holds updated running statistics, and ``extra`` other returned ones."""

    outputs: dict[str, Array] = field(default_factory=dict)
    running: dict[str, Array] = field(default_factory=dict)
    extra: dict[str, Array] = field(default_factory=dict)
    dtypes: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)
    named: bool = False  # whether the forward returned its statistics with names
    swappable: bool = False  # whether dgamma and dbeta were returned without names

    def swapped(self) -> "RunResult":
        """The result with dgamma and dbeta exchanged."""
        outputs = self.outputs | {"dgamma": self.outputs["dbeta"], "dbeta": self.outputs["dgamma"]}
        note = "The backward returns dbeta before dgamma."
        return replace(self, outputs=outputs, notes=[*self.notes, note], swappable=False)


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
        return self.backward is None or takes(self.backward, self.adapter, "cache")

    def takes(self, *quantities: str) -> bool:
        return any(takes(f, self.adapter, *quantities) for f in (self.forward, self.backward))

    def run(self, p: Probe, correction: int = 0, *, momentum: bool = True) -> RunResult:
        """Run the code on a probe. Raises Unjudged if it fails.

        correction: of the exact statistics passed to a backward. momentum: whether a momentum is passed.
        """
        result = RunResult()
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            values = self._values(p, correction, momentum)
            cache = self._run_forward(p, values, result) if self.forward is not None else NO_CACHE
            if self.backward is not None:
                self._run_backward(p, self._values(p, correction, momentum) | {"cache": cache}, result)
            elif self.forward is not None:
                self._differentiate(p, values, result)
        return result

    def _array(self, values: Array, style: str = "wide") -> Any:
        shaped = values.reshape(-1) if style == "flat" else values
        return arrays.make(shaped, self.spec.kind, self.spec.dtype)

    def _values(self, p: Probe, correction: int, momentum: bool) -> dict[str, Any]:
        spec, f = self.spec, reference.forward(p, correction)
        x, dy = (arrays.laid_out(self._array(v), spec.kind, spec.memory) for v in (p.x, p.dy))
        values: dict[str, Any] = {"x": x, "dy": dy}
        for name in ("gamma", "beta", "running_mean", "running_var"):
            values[name] = self._array(getattr(p, name), spec.parameters)
        exact = {"mean": f.mu, "var": f.var, "std": 1 / f.rstd, "rstd": f.rstd}
        values |= {name: self._array(value, spec.statistics) for name, value in exact.items()}
        values |= {"xhat": self._array(f.xhat), "x - mu": self._array(p.x - f.mu), "y": self._array(f.y)}
        values |= {"eps": p.eps, "m": p.count(), "axis": p.layout.axis, "training": True, "mode": "train"}
        if momentum:
            values["momentum"] = p.momentum
        options = ("mode", "eps", "momentum", "running_mean", "running_var")
        values["options"] = {name: values[name] for name in options if name in values}
        return values

    def _call(self, title: str, function: Callable[..., Any], values: Mapping[str, Any], order: Any) -> Any:
        positional, keywords = bind(title, function, values, self.adapter, order)
        try:
            return function(*positional, **keywords)
        except (Exception, SystemExit) as e:  # code that calls sys.exit must not end the checker
            shape = tuple(values["x"].shape)
            where = f"on x of shape {shape} ({self.spec.kind}, {self.spec.dtype})"
            text = str(e).strip().splitlines()
            raise Unjudged(
                f"{title} raised {type(e).__name__} {where}: {text[0] if text else 'no message'}"
            ) from e

    def _run_forward(self, p: Probe, values: dict[str, Any], result: RunResult) -> Any:
        assert self.forward is not None
        title = title_of(self.forward, "forward")
        returned = self._call(title, self.forward, values, _FORWARD)
        running = (
            ("running_mean", "running_var") if self.takes("running_mean", "options") else ("mean", "var")
        )
        found = named_results(title, returned, self.adapter.forward_returns, ("y", *running), self.adapter)
        if "y" not in found:
            raise Unjudged(f"{title} returned {', '.join(found)}, expected y among them.")
        result.outputs["y"] = _sized(title, "y", found["y"], p.x.shape)
        result.dtypes.add(arrays.dtype_of(found["y"]))
        if not np.array_equal(arrays.read(values["x"]), p.x):
            result.notes.append(f"{title} overwrites x.")
        for name in ("mean", "var", "running_mean", "running_var"):
            if (
                name in found
                and arrays.is_array(found[name])
                and np.size(value := _numbers(found[name])) == p.channels
            ):
                result.extra[name] = value
        is_unnamed = isinstance(returned, (tuple, list)) and not hasattr(returned, "_fields")
        result.named = self.adapter.forward_returns is not None or not is_unnamed
        self._observe_running(p, values, result)
        return cache_of(returned, found)

    def _observe_running(self, p: Probe, values: dict[str, Any], result: RunResult) -> None:
        """Find running statistics that were updated in place, in the options, or returned."""
        for name in ("running_mean", "running_var"):
            before = getattr(p, name).ravel()
            for holder in (values, values["options"], result.extra):
                after = _numbers(holder[name]).ravel() if name in holder else before
                if not np.array_equal(after, before):
                    result.running[name] = after
            result.extra.pop(name, None)

    def _run_backward(self, p: Probe, values: dict[str, Any], result: RunResult) -> None:
        assert self.backward is not None
        title = title_of(self.backward, "backward")
        if values["cache"] is NO_CACHE and takes(self.backward, self.adapter, "cache"):
            why = "no forward was given" if self.forward is None else "its forward returns y alone"
            raise Unjudged(f"{title} asks for a cache, but {why}; give the forward that makes it.")
        returned = self._call(title, self.backward, values, _BACKWARD)
        returns = self.adapter.backward_returns
        found = named_results(title, returned, returns, _GRADIENTS, self.adapter)
        found = {name: value for name, value in found.items() if name in _GRADIENTS and value is not None}
        affine = [name for name, given in (("dgamma", "gamma"), ("dbeta", "beta")) if self._affine(given)]
        if returns is None and isinstance(returned, (tuple, list)) and 1 < len(returned) < 1 + len(affine):
            raise Unjudged(
                f"{title} returned {len(returned)} values, expected dx, {', '.join(affine)} "
                "(or dx alone); describe others with Adapter(backward_returns=...)."
            )
        for name, value in found.items():
            numbers = _sized(title, name, value, p.x.shape) if name == "dx" else _numbers(value)
            result.outputs[name] = numbers
            result.dtypes.add(arrays.dtype_of(value))
        is_unnamed = isinstance(returned, (tuple, list)) and not hasattr(returned, "_fields")
        result.swappable = is_unnamed and returns is None and len(found) == len(_GRADIENTS)
        if not found:
            raise Unjudged(f"{title} returned none of dx, dgamma and dbeta by a known name.")

    def _affine(self, name: str) -> bool:
        """Whether the code has this parameter; assumed for a backward without a forward."""
        return takes(self.forward, self.adapter, name) if self.forward else True

    def _differentiate(self, p: Probe, values: dict[str, Any], result: RunResult) -> None:
        """The gradients of a forward without a backward, by automatic differentiation."""
        forward = self.forward
        assert forward is not None
        fresh = self._values(p, 0, "momentum" in values)
        leaves = {name: fresh[name] for name in ("x", "gamma", "beta") if name == "x" or self._affine(name)}

        def y_of(**given: Any) -> Any:
            returned = self._call("forward", forward, fresh | given, _FORWARD)
            return named_results("forward", returned, self.adapter.forward_returns, ("y",), self.adapter)["y"]

        try:
            found = arrays.gradient(y_of, leaves, fresh["dy"], self.spec.kind)
        except Exception as e:
            result.notes.append(
                f"The forward can't be differentiated by {self.spec.kind}: {str(e).splitlines()[0]}"
            )
            return
        if found is None:
            if self.spec.kind != "numpy":
                result.notes.append("No gradient flows through the forward, so that only y was judged.")
            return
        result.outputs |= {name: arrays.read(value) for name, value in found.items()}


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
        raise Unjudged(f"{title} returned {name} of shape {numbers.shape}, expected {shape}, the shape of x.")
    return numbers
