"""What the options, the arrays and the saved states of NumPy's layer must be: one sentence for each mistake.

No state lives here.
"""

import operator
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from xhat.checks import Array, number, plain_array, refuse_options
from xhat.errors import ArgumentError, DtypeError, ShapeError

__all__ = [
    "Array",
    "check_names",
    "check_state",
    "check_unknown",
    "choice",
    "features",
    "layer_dtype",
    "loaded_array",
    "real",
    "rounded",
]

# What other libraries call the options of a layer: what is said of them.
_AFFINE = "affine=False leaves out gamma and beta."
THEIR_OPTIONS = {
    "epsilon": "It is called eps here.",
    "track_running_stats": "It is called track_running here.",
    "training": "It is an argument of the call here.",
    "scale": _AFFINE,
    "center": _AFFINE,
    "bias": _AFFINE,
}

# What other libraries call the arrays of a state, in the order of ours.
OURS = ("gamma", "beta", "running_mean", "running_var", "updates")
THEIRS = {
    "PyTorch": ("weight", "bias", "running_mean", "running_var", "num_batches_tracked"),
    "Keras": ("gamma", "beta", "moving_mean", "moving_variance"),
    "Flax": ("scale", "bias", "mean", "var"),
    "Haiku": ("scale", "offset", "mean_ema", "var_ema", "counter", "hidden"),
}


def _renaming(state: Mapping[Any, Any]) -> str:
    """What to pass in place of a state with another library's names, which may have the layer's path before them."""
    # bn/gamma:0, stem.1.weight, bn/~/mean_ema/average
    tails = {key: re.split(r"[/.]", re.sub(r"(/average|:\d+)$", "", str(key)))[-1] for key in state}
    for library, names in THEIRS.items():
        if not set(tails.values()) <= set(names):
            continue
        foreign: dict[str, Any] = {}
        for theirs, ours in zip(names, OURS, strict=False):
            key = next((key for key, tail in tails.items() if tail == theirs), ours)
            if key != ours:
                foreign[ours] = key
        if foreign:
            renamed = ", ".join(f'"{ours}": state["{key}"]' for ours, key in foreign.items())
            return f" These are {library}'s names: pass {{{renamed}, ...}}."
    return ""


def check_names(state: Any, own: Mapping[str, Array]) -> None:
    """Raises ArgumentError unless the state has just these names; where it has another library's, with the renaming."""
    if not isinstance(state, Mapping):
        raise ArgumentError(
            f"load_state_dict: state is {type(state).__name__}, expected a mapping of names to arrays."
        )
    remedy = _renaming(state)
    if missing := sorted(set(own) - set(state)):
        raise ArgumentError(
            f"load_state_dict: {', '.join(missing)} missing, expected {', '.join(own)}.{remedy}"
        )
    if unexpected := sorted(map(str, set(state) - set(own))):
        expected = ", ".join(own) or "nothing"
        raise ArgumentError(
            f"load_state_dict: {', '.join(unexpected)} unexpected, expected only {expected}.{remedy}"
        )


def check_state(layer: Any) -> None:
    """Raises where an attribute was set to what it can't be: arrays of another kind or shape, half of the moments."""
    shape = layer.num_features
    for name in ("gamma", "beta", "running_mean", "running_var"):
        value = getattr(layer, name)
        if value is None:
            continue
        if not isinstance(value, np.ndarray) or value.dtype.kind != "f":
            kind = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
            raise DtypeError(f"BatchNorm: {name} is {kind}, expected a floating array of NumPy, or None.")
        if value.shape != shape:
            raise ShapeError(f"BatchNorm: {name} has shape {value.shape}, expected {shape}.")
    if (layer.running_mean is None) != (layer.running_var is None):
        raise ArgumentError(
            "BatchNorm: one of running_mean and running_var is None, expected both or neither."
        )
    if layer.momentum is not None:
        real("momentum", layer.momentum, "None or 0 to 1", lambda v: 0 <= v <= 1)
    choice("running_correction", layer.running_correction)
    counted = isinstance(layer.updates, (int, np.integer)) and not isinstance(layer.updates, bool)
    if not counted or layer.updates < 0:
        raise ArgumentError(f"BatchNorm: updates is {layer.updates!r}, expected an int of at least 0.")


def check_unknown(options: Mapping[str, Any]) -> None:
    """Raises OptionError for options that the layer does not have."""
    if options:
        refuse_options("BatchNorm", options, THEIR_OPTIONS)


def features(given: int | tuple[int, ...], axis: int | tuple[int, ...]) -> tuple[int, ...]:
    """num_features as a tuple, one number for each channel axis."""
    try:
        features = tuple(map(operator.index, given if isinstance(given, tuple) else (given,)))
    except TypeError:
        features = ()
    if isinstance(given, np.ndarray) and given.ndim:
        raise ArgumentError(
            f"BatchNorm: num_features is an array of shape {given.shape}, expected a positive int. BatchNorm is a "
            "layer, which is called with x: BatchNorm(channels)(x). xhat.batch_norm(x) is the function."
        )
    if not features or min(features) < 1:
        raise ArgumentError(
            f"BatchNorm: num_features is {given!r}, expected a positive int, or a tuple of them "
            "for a tuple axis."
        )
    axes = len(axis) if isinstance(axis, tuple) else 1
    if len(features) != axes:
        raise ArgumentError(
            f"BatchNorm: num_features {given!r} is for {len(features)} channel axes, "
            f"axis {axis!r} names {axes}."
        )
    return features


def real(name: str, given: Any, expected: str, fits: Any) -> float:
    """An option as a float for which `fits` is true."""
    value = number(given)
    if not fits(value):
        raise ArgumentError(f"BatchNorm: {name} is {given!r}, expected {expected}.")
    return value


def choice(name: str, given: Any) -> int:
    """An option that is 0 or 1."""
    try:
        if np.ndim(given) == 0 and given in (0, 1) and not isinstance(given, (bool, np.bool_)):
            return int(given)
    except (TypeError, ValueError):  # a complex number, or rows of unequal length
        pass
    raise ArgumentError(f"BatchNorm: {name} is {given!r}, expected 0 or 1.")


def layer_dtype(given: Any) -> np.dtype[Any]:
    """float32 or float64."""
    try:
        dtype: np.dtype[Any] = np.dtype(given)
    except (TypeError, ValueError):
        raise DtypeError(f"BatchNorm: dtype is {given!r}, expected float32 or float64.") from None
    if dtype not in (np.float32, np.float64):
        raise DtypeError(f"BatchNorm: dtype is {dtype}, expected float32 or float64.")
    return dtype


def loaded_array(name: str, given: Any, own: Array) -> Array:
    """One array of a state, checked against the array that it will be copied into."""
    value = plain_array(given, "load_state_dict", name)
    kinds, kind = ("iu", "an integer") if name == "updates" else ("f", "a real floating array")
    if value.dtype.name == "bfloat16" and kinds == "f":
        value = value.astype(np.float32)
    if value.dtype.kind not in kinds:
        raise DtypeError(f"load_state_dict: {name} has dtype {value.dtype}, expected {kind}.")
    if value.shape != own.shape:
        raise ShapeError(f"load_state_dict: {name} has shape {value.shape}, expected {own.shape}.")
    if name in ("running_var", "updates") and (least := np.fmin.reduce(value, axis=None)) < 0:
        raise ArgumentError(f"load_state_dict: {name} has the value {least}, expected none below 0.")
    return value if name == "updates" else rounded("load_state_dict", name, value, own.dtype)


def rounded(operation: str, name: str, value: Array, dtype: np.dtype[Any]) -> Array:
    """value in this dtype; a finite number must not become infinite, since evaluation would then give beta."""
    rounded = value.astype(dtype)
    if not np.isfinite(rounded).all() and (np.isinf(rounded) & np.isfinite(value)).any():
        most = np.abs(value[np.isfinite(value)]).max()
        raise ArgumentError(
            f"{operation}: {name} reaches {most:.3g}, beyond {dtype}; use a layer with dtype=np.float64."
        )
    return rounded
