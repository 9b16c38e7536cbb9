"""Calling conventions of the code under test: which parameter and which result is which quantity.

Nothing is judged here. Usual names are recognized; an `Adapter` describes all others.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from xhat.lens.checker.calling.arrays import is_array
from xhat.lens.checker.calling.names import COTANGENTS, GRADIENTS, quantity_of

__all__ = [
    "NO_CACHE",
    "Adapter",
    "Unjudged",
    "bind",
    "bind_layer",
    "cache_of",
    "gradients_in",
    "is_listed",
    "named_results",
    "quantity",
    "takes",
]


NO_CACHE = object()  # not None, which a forward may return as its cache


class Unjudged(Exception):
    """The code under test can't be run or understood; the message is for its author.

    progress: how far the code got, as (phase, line); of several attempts, the furthest one has the reason to show.
    """

    def __init__(self, message: str, progress: tuple[int, int] = (0, 0)) -> None:
        super().__init__(message)
        self.progress = progress


@dataclass(frozen=True)
class Adapter:
    """A description of parameters and results that have no usual names, for `check`.

    Parameters
    ----------
    names : mapping of str to str, optional
        From a parameter (or the key of a returned dict) to its quantity, such as ``{"features": "x", "k": "gamma"}``.
    forward_returns, backward_returns : tuple of str, optional
        The quantities of a returned tuple in its order, such as ``("dx", "dbeta", "dgamma")``. ``"cache"`` is passed
        to the backward, ``"-"`` is ignored.
    arrays : {"numpy", "torch", "jax"}, optional
        The arrays that the functions take. By default those of the package that they use, else of every package that
        is loaded.

    Examples
    --------
    >>> import numpy as np
    >>> import xhat.lens
    >>> def forward(features, k, shift):
    ...     centred, var = features - features.mean(0), features.var(0)
    ...     return k * centred / np.sqrt(var + 1e-5) + shift
    >>> names = {"features": "x", "k": "gamma", "shift": "beta"}
    >>> adapter = xhat.lens.Adapter(names=names)
    >>> xhat.lens.check(forward, adapter=adapter)
    <forward: right (y).>
    """

    names: Mapping[str, str] = field(default_factory=dict)
    forward_returns: tuple[str, ...] | None = None
    backward_returns: tuple[str, ...] | None = None
    arrays: str | None = None

    def __hash__(self) -> int:
        return hash((tuple(self.names.items()), self.forward_returns, self.backward_returns, self.arrays))


def quantity(name: str, adapter: Adapter) -> str | None:
    """The quantity that a name denotes, or None."""
    return adapter.names.get(name) or quantity_of(name)


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter] | None:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        return None


def _roles(
    function: Callable[..., Any], adapter: Adapter, order: tuple[str, ...]
) -> list[tuple[Any, str | None]]:
    """Each parameter with its quantity. A first parameter with an unknown name is x, or dy in a backward."""
    parameters = _parameters(function)
    if parameters is None:
        return [(None, name) for name in order]
    roles: list[tuple[Any, str | None]] = []
    for i, parameter in enumerate(parameters):
        if parameter.kind is parameter.VAR_POSITIONAL:
            roles += [(None, name) for name in order[len(roles) :]]
        elif parameter.kind is not parameter.VAR_KEYWORD:
            found = quantity(parameter.name, adapter)
            found = None if found in GRADIENTS and parameter.name not in adapter.names else found
            roles.append((parameter, found or (order[0] if i == 0 else None)))
    if order[0] == "dy" and "dy" not in {found for _, found in roles}:
        roles = [(p, "dy" if p is not None and p.name in COTANGENTS else found) for p, found in roles]
    if order[0] == "dy" and "dy" in {found for _, found in roles}:  # then dx is an array to write to
        roles = [(p, found or (p is not None and _written(p.name)) or None) for p, found in roles]
    return roles


def _written(name: str) -> str | None:
    found = quantity_of(name)
    return found if found in GRADIENTS else None


def takes(
    function: Callable[..., Any] | None,
    adapter: Adapter,
    *quantities: str,
    order: tuple[str, ...] = ("x", "gamma", "beta"),
) -> bool:
    """Whether a function has a parameter for one of these quantities."""
    if function is None:
        return False
    return any(found in quantities for _, found in _roles(function, adapter, order))


def bind(
    title: str,
    function: Callable[..., Any],
    values: Mapping[str, Any],
    adapter: Adapter,
    order: tuple[str, ...],
) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of a call. Raises Unjudged for a required parameter with an unknown name or no value."""
    positional: list[Any] = []
    keywords: dict[str, Any] = {}
    skipped = False
    for parameter, found in _roles(function, adapter, order):
        optional = parameter is not None and parameter.default is not parameter.empty
        if found is None or found not in values or (optional and found in ("axis", "m", "y", "ndim")):
            if optional:
                skipped = True
                continue
            name = parameter.name if parameter is not None else str(found)
            why = "for which this run has no value" if found else "which the checker doesn't know"
            raise Unjudged(
                f"{title} asks for {name!r}, {why}; describe it with Adapter(names={{{name!r}: ...}}), "
                "or wrap the function in one with known names."
            )
        if parameter is not None and (skipped or parameter.kind is parameter.KEYWORD_ONLY):
            keywords[parameter.name] = values[found]
        else:
            positional.append(values[found])
    return positional, keywords


def is_listed(function: Any) -> bool:
    """Whether arguments are taken as a list, so that the signature has no names for them."""
    return any(p.kind is p.VAR_POSITIONAL for p in _parameters(function) or ())


def bind_layer(step: Any, values: Mapping[str, Any], adapter: Adapter) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of a layer's forward. In Keras, __call__(*args, **kwargs) hands them to call(inputs, training)."""
    described = getattr(step, "call", None)
    if described is None or not is_listed(step):
        return bind("forward", step, values, adapter, ("x",))
    positional, keywords = bind("forward", described, values, adapter, ("x",))
    names = list(inspect.signature(described).parameters)
    return positional[:1], dict(zip(names[1:], positional[1:], strict=False)) | keywords


def _items(result: Any) -> list[tuple[str | None, Any]]:
    """The parts of a result, each with its name or None."""
    if isinstance(result, Mapping):
        return [(str(name), value) for name, value in result.items()]
    if hasattr(result, "_fields"):
        return list(zip(result._fields, result, strict=True))
    if isinstance(result, (tuple, list)) and not is_array(result):
        return [(None, value) for value in result]
    if is_array(result):
        return [(None, result)]
    if hasattr(data := getattr(result, "data", None), "shape") and is_array(
        data
    ):  # a Variable or Tensor of the code
        return [(None, data)]
    attributes = {name: value for name, value in getattr(result, "__dict__", {}).items() if is_array(value)}
    return list(attributes.items())


def named_results(
    title: str, result: Any, returns: tuple[str, ...] | None, usual: tuple[str, ...], adapter: Adapter
) -> dict[str, Any]:
    """Quantity -> value of everything that a pass returned. Unnamed parts are in the described or the usual order.

    Raises Unjudged if the number of values differs from the description, or if nothing usable was returned.
    """
    items = _items(result)
    if returns is not None and len(items) != len(returns):
        raise Unjudged(
            f"{title} returned {len(items)} values, expected {len(returns)}: {', '.join(returns)}.", (2, 0)
        )
    if result is None or (items and all(value is None for _, value in items)):
        raise Unjudged(f"{title} returned None: not written yet.", (2, 0))
    if not items:
        raise Unjudged(
            f"{title} returned a {type(result).__name__}, expected {usual[0]} as an array.", (2, 0)
        )
    found: dict[str, Any] = {}
    for i, (name, value) in enumerate(items):
        if returns is not None:
            key = returns[i]
        elif name is not None:
            key = quantity(name, adapter) or name
        else:
            key = usual[i] if i < len(usual) else f"value {i + 1}"
        found[key] = value
    return found


def gradients_in(title: str, returned: Any, adapter: Adapter) -> dict[str, Any]:
    """dx, dgamma and dbeta in what a backward returned, also nested: (dx, (dgamma, dbeta)), or under "x", "gamma"."""
    if adapter.backward_returns is None and isinstance(returned, (tuple, list)):
        flat: list[Any] = []
        for part in returned:
            nested = isinstance(part, (tuple, list)) and part and all(is_array(v) for v in part)
            flat += [*part] if nested else [*part.values()] if isinstance(part, Mapping) else [part]
        returned = returned if hasattr(returned, "_fields") else tuple(flat)
    found = named_results(title, returned, adapter.backward_returns, GRADIENTS, adapter)
    found = {f"d{name}" if name in ("x", "gamma", "beta") else name: value for name, value in found.items()}
    found = {name: value for name, value in found.items() if name in GRADIENTS and value is not None}
    if not found:
        raise Unjudged(f"{title} returned none of dx, dgamma and dbeta by a known name.", (2, 0))
    return found


def returned_state(returned: Any, adapter: Adapter) -> dict[str, Any]:
    """The running statistics in a dictionary or a pair beside y: y, {"mean": ..., "var": ...}; or y, (mean, var)."""
    found: dict[str, Any] = {}
    for part in returned[1:] if isinstance(returned, (tuple, list)) else ():
        if isinstance(part, Mapping):
            named = {quantity(str(name), adapter): value for name, value in part.items()}
            found |= {f"running_{q}": named[q] for q in ("mean", "var") if is_array(named.get(q))}
            found |= {q: named[q] for q in ("running_mean", "running_var") if is_array(named.get(q))}
        elif isinstance(part, (tuple, list)) and len(part) == 2 and all(map(is_array, part)):
            found |= dict(zip(("running_mean", "running_var"), part, strict=True))
    return found


def cache_of(result: Any, described: Mapping[str, Any]) -> Any:
    """The cache that a forward returns for its backward: as described, or everything but y, or NO_CACHE."""
    if "cache" in described:
        return described["cache"]
    if not isinstance(result, (tuple, list)) or len(result) < 2:
        return result if isinstance(result, Mapping) else NO_CACHE
    rest = result[1:]
    holders = [part for part in rest if not is_array(part)]
    return rest[0] if len(rest) == 1 else holders[0] if len(holders) == 1 else tuple(rest)
