"""Where a layer keeps its arrays: attributes, dictionaries of parameters and gradients, objects with .data and .grad.

Nothing is judged here. A place is found in one instance of a layer, and used in others.
"""

from collections.abc import Callable, Iterator, Mapping
from math import prod
from typing import Any

import numpy as np

from xhat.lens.checker.calling.adapter import Adapter, Unjudged, quantity
from xhat.lens.checker.calling.arrays import is_array, read
from xhat.lens.checker.calling.names import GRADIENTS

__all__ = ["STATE", "Place", "by_effect", "gradients", "parameters", "put", "unknown", "value_at"]

STATE = ("gamma", "beta", "running_mean", "running_var")
Place = tuple[str, ...]  # the names on the way from a layer to an array

_HELD = ("data", "value", "array")  # what an object that stands for a parameter calls its array
_GRADIENT = ("grad", "gradient", "d", "g")
_OF_GRADIENTS = ("grads", "gradients", "grad", "dparams", "gradparams", "dweights")


def value_at(made: Any, place: Place) -> Any:
    """The array at a place."""
    for name in place:
        made = made[name] if isinstance(made, Mapping) else getattr(made, name)
    return made


def put(made: Any, place: Place, value: Any) -> None:
    """Set an array, in the shape that it has. In a PyTorch module the tensor itself replaces the parameter."""
    holder = value_at(made, place[:-1])
    old = value_at(made, place)
    shape = tuple(getattr(old, "shape", value.shape))
    if prod(shape) not in (prod(value.shape), 1):
        raise Unjudged(f"{'.'.join(place)} has shape {shape}, expected one number for each channel.", (2, 0))
    shaped = value.reshape(shape) if prod(shape) == prod(value.shape) else value
    if isinstance(holder, dict):
        holder[place[-1]] = shaped
    else:
        vars(holder).get("_parameters", {}).pop(place[-1], None)
        setattr(holder, place[-1], shaped)


def _places(made: Any, above: Place = ()) -> Iterator[tuple[Place, Any]]:
    """Every array within two steps of a layer."""
    held = dict(made) if isinstance(made, Mapping) else dict(getattr(made, "__dict__", {}))
    held |= {**held.pop("_parameters", {}), **held.pop("_buffers", {})} if not above else {}
    for name, value in held.items():
        place = (*above, str(name))
        if hasattr(value, "shape") and is_array(value):
            yield place, value
        elif len(place) < 3 and (isinstance(value, Mapping) or hasattr(value, "__dict__")):
            yield from _places(value, place)


def _meaning(place: Place, adapter: Adapter) -> str | None:
    """The quantity at a place: that of its last telling name, as a gradient if a name on the way says so."""
    names = [name for name in place if name.lstrip("_") not in (*_HELD, *_GRADIENT)] or [place[-1]]
    found = quantity(names[-1], adapter)
    plain = [name.lower().replace("_", "") for name in place]
    is_gradient = (len(place) > 1 and plain[-1] in _GRADIENT) or plain[0] in _OF_GRADIENTS
    return f"d{found}" if is_gradient and found in ("x", "gamma", "beta") else found


def parameters(made: Any, adapter: Adapter) -> tuple[dict[str, Place], frozenset[str]]:
    """The place of each parameter and running statistic; and those whose names (mean, var) may be of the batch's."""
    found: dict[str, Place] = {}
    guessed: dict[str, Place] = {}
    for place, _ in _places(made):
        meaning = _meaning(place, adapter) or ""
        if meaning in STATE:
            found.setdefault(meaning, place)
        elif meaning in ("mean", "var"):
            guessed.setdefault(f"running_{meaning}", place)
    both = guessed | found
    return {q: both[q] for q in STATE if q in both}, frozenset(guessed) - set(found)


def gradients(made: Any, adapter: Adapter) -> dict[str, Any]:
    """The gradients that a layer keeps after its backward."""
    held = ((_meaning(place, adapter), value) for place, value in _places(made))
    return {name: value for name, value in held if name in GRADIENTS}


def unknown(made: Any, adapter: Adapter, channels: int) -> dict[Place, Any]:
    """The arrays of as many values as channels whose meaning is not known."""
    found = ((place, value) for place, value in _places(made) if _meaning(place, adapter) is None)
    return {place: value for place, value in found if np.size(read(value)) == channels}


def by_effect(made: Any, values: Mapping[Place, Any], y: Callable[[], Any]) -> dict[str, Place]:
    """gamma and beta among arrays, by what happens to y when they grow by 1: xhat is added to it, or 1."""
    found: dict[str, Place] = {}
    for place, value in values.items():
        before = read(y())
        put(made, place, value + 1)
        change = read(y()) - before
        put(made, place, value)
        if np.allclose(change, 1, atol=1e-4):
            found.setdefault("beta", place)
        elif abs(change.mean()) < 1e-4 and 0.5 < change.std() < 2:
            found.setdefault("gamma", place)
    return found
