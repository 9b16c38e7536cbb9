"""Layers: a class with a forward, and perhaps a backward, as two functions for the checker.

Nothing is judged here. Each run constructs a layer, sets its parameters and running statistics, and reads them
afterwards. A PyTorch autograd Function is called through `apply`, so that its backward runs too.
"""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from xhat.lens.checker.adapter import Adapter, Unjudged, bind, named_results, quantity
from xhat.lens.checker.arrays import is_array, kinds_for

__all__ = ["Functions", "functions_of"]

# Usual names of the number of channels in a constructor, in lower case and without underscores.
_WIDTH = {
    "numfeatures",
    "features",
    "channels",
    "c",
    "dim",
    "size",
    "nout",
    "numchannels",
    "width",
    "d",
    "numunits",
}
_STATE = ("gamma", "beta", "running_mean", "running_var")
_GRADIENTS = ("dx", "dgamma", "dbeta")
_PLAIN = Adapter()


class Functions(NamedTuple):
    """The forward and backward of a layer as functions, and its kind of array."""

    forward: Callable[..., Any]
    backward: Callable[..., Any] | None
    kind: str


def functions_of(layer: type) -> Functions:
    """forward(x, gamma, beta, ...) returns y, the layer as cache, and the running statistics; backward(dy, cache).

    Raises Unjudged for a class without a forward, or one that can't be constructed from a number of channels.
    """
    if any(c.__module__ == "torch.autograd.function" for c in layer.__mro__[1:]):
        return Functions(_apply(layer), None, "torch")
    called = next((vars(c)["__call__"] for c in layer.__mro__ if "__call__" in vars(c)), None)
    step = getattr(layer, "forward", called)
    if step is None:
        raise Unjudged(f"class {layer.__name__} has no forward and no __call__.")
    kind = kinds_for([step, vars(layer).get("__init__", step)], None)[0]
    attributes = _attributes(_construct(layer, 3, {}))
    options = [q for q in ("eps", "momentum") if q in _constructor(layer).values()]

    def forward(**given: Any) -> dict[str, Any]:
        chosen = {q: given[q] for q in options if given.get(q) is not None}
        made = _construct(layer, _channels(given), chosen)
        for q, name in attributes.items():
            _set(made, name, given[q])
        call = made if callable(made) else made.forward
        values = {"x": given["x"], "training": True, "mode": "train"}
        positional, keywords = bind("forward", call, values, _PLAIN, ("x",))
        y = named_results("forward", call(*positional, **keywords), None, ("y",), _PLAIN)["y"]
        running = {q: getattr(made, name) for q, name in attributes.items() if q.startswith("running")}
        return {"y": y, "cache": made, **running}

    def backward(dy: Any, cache: Any) -> dict[str, Any]:
        result = cache.backward(dy)
        found = {} if result is None else named_results("backward", result, None, _GRADIENTS, _PLAIN)
        held = {quantity(name, _PLAIN): value for name, value in vars(cache).items() if is_array(value)}
        return {name: held[name] for name in _GRADIENTS if name in held} | found

    given = [inspect.Parameter(q, inspect.Parameter.KEYWORD_ONLY) for q in ("x", *attributes)]
    given += [inspect.Parameter(q, inspect.Parameter.KEYWORD_ONLY, default=None) for q in options]
    _set_signature(forward, f"{layer.__name__}.forward", inspect.Signature(given))
    _set_signature(backward, f"{layer.__name__}.backward", inspect.signature(backward))
    return Functions(forward, backward if hasattr(layer, "backward") else None, kind)


def _set_signature(function: Any, name: str, signature: inspect.Signature) -> None:
    function.__name__ = name
    function.__signature__ = signature


def _apply(layer: Any) -> Callable[..., Any]:
    def forward(*arguments: Any) -> Any:
        return layer.apply(*arguments)

    parameters = list(inspect.signature(layer.forward).parameters.values())
    _set_signature(forward, f"{layer.__name__}.apply", inspect.Signature(parameters[1:]))  # without ctx
    return forward


def _constructor(layer: type) -> dict[str, str | None]:
    """Each parameter of the constructor with its quantity; "channels" is the number of channels."""
    found: dict[str, str | None] = {}
    for name, parameter in inspect.signature(layer).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        width = name.lower().replace("_", "") in _WIDTH
        required = parameter.default is parameter.empty and not found
        found[name] = "channels" if width or required else quantity(name, _PLAIN)
    return found


def _construct(layer: type, channels: int, options: dict[str, Any]) -> Any:
    values = options | {"channels": channels}
    known = _constructor(layer)
    chosen = {name: values[q] for name, q in known.items() if q in values}
    listed = any(p.kind is p.VAR_POSITIONAL for p in inspect.signature(layer).parameters.values())
    try:
        return layer(channels, **chosen) if listed and "channels" not in known.values() else layer(**chosen)
    except Exception as e:
        shown = ", ".join(f"{name}={value}" for name, value in chosen.items())
        raise Unjudged(f"{layer.__name__}({shown}) raised {type(e).__name__}: {e}") from e


def _attributes(made: Any) -> dict[str, str]:
    """Quantity -> attribute name, for the parameters and running statistics of a layer."""
    held = {**vars(made), **vars(made).get("_parameters", {}), **vars(made).get("_buffers", {})}
    names = {quantity(name, _PLAIN): name for name, value in held.items() if is_array(value)}
    return {q: names[q] for q in _STATE if q in names}


def _channels(given: dict[str, Any]) -> int:
    """The number of channels, from any parameter; 3 for a layer without parameters, where it does not matter."""
    shapes = (tuple(given[q].shape) for q in _STATE if q in given)
    return max((max(shape) for shape in shapes if shape), default=3)


def _set(made: Any, name: str, value: Any) -> None:
    """Set a parameter, in its original shape. In a PyTorch module the tensor itself replaces the parameter."""
    shape = tuple(getattr(made, name).shape)
    vars(made).get("_parameters", {}).pop(name, None)
    setattr(made, name, value.reshape(shape))
