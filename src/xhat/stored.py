"""Where the arrays of batch norms are in a state, and how a framework names and nests them.

What the numbers mean in another framework does not live here. No framework is imported: states are mappings of arrays.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from xhat.checks import Array, plain_array
from xhat.errors import ArgumentError, DtypeError, ShapeError
from xhat.numpy_checks import OURS, THEIRS

__all__ = [
    "BETA",
    "CONVENTIONS",
    "COUNT",
    "GAMMA",
    "MEAN",
    "VAR",
    "Convention",
    "Values",
    "joined",
    "read",
    "written",
]

Path = tuple[str, ...]
Values = list[Array | None]  # gamma, beta, the running mean and variance, the number of batches
GAMMA, BETA, MEAN, VAR, COUNT = range(5)


class Convention(NamedTuple):
    """How a framework stores a batch norm."""

    layer: str
    names: tuple[str, ...]  # in the order of Values; those without a count have four
    correction: int  # the running variance is m2 / (m - correction)
    eps: tuple[str, float]  # its name and default
    momentum: float  # the default
    keeps: bool  # whether momentum is the weight of the old value; else it is that of the new batch
    separator: str = ""  # between the names of layers in a key; none where states are nested
    collections: tuple[str, ...] = ()  # of parameters and of statistics, around the names of layers
    shaped: bool = False  # whether the channels may have several axes
    untracked: bool = False  # whether a layer may have no running statistics
    remark: str = ""  # a sentence for everyone who converts from or to it


_EPS, _PYTORCH = ("eps", 1e-5), THEIRS["PyTorch"]
_MODES = (
    'Equinox stores these statistics with mode="ema"; with mode="batch", times 1 - momentum ** batch_counter.'
)
_NNX = Convention("flax.nnx.BatchNorm", THEIRS["Flax"], 0, ("epsilon", 1e-5), 0.99, True, shaped=True)
CONVENTIONS = {
    "torch": Convention("torch.nn.BatchNorm", _PYTORCH, 1, _EPS, 0.1, False, ".", untracked=True),
    "keras": Convention(
        "keras.layers.BatchNormalization", THEIRS["Keras"], 0, ("epsilon", 1e-3), 0.99, True, "/"
    ),
    "flax.nnx": _NNX,
    "flax.linen": _NNX._replace(layer="flax.linen.BatchNorm", collections=("params", "batch_stats")),
    "equinox": Convention("equinox.nn.BatchNorm", _PYTORCH[:COUNT], 0, _EPS, 0.99, True, remark=_MODES),
    "numpy": Convention("xhat.numpy.BatchNorm", OURS, 1, _EPS, 0.1, False, shaped=True, untracked=True),
}


def joined(path: Path, c: Convention) -> str:
    """The path of a layer as one name."""
    return (c.separator or ".").join(path)


def read(state: Any, c: Convention) -> tuple[dict[Path, Values], list[str]]:
    """The checked arrays of every batch norm by the path of its layer, and the names of layers that are none."""
    if not isinstance(state, Mapping):
        raise ArgumentError(
            f"convert_state: state is {type(state).__name__}, expected a mapping of names to arrays."
        )
    layers: dict[Path, dict[str, Any]] = {}
    for (*path, name), value in _leaves(state, c):
        layers.setdefault(tuple(path), {})[name] = value
    statistics = set(c.names[MEAN : VAR + 1])
    norms = {path: layer for path, layer in layers.items() if path == () or statistics & set(layer)}
    if not norms:
        within = f" in {' and '.join(c.collections)}" if c.collections else ""
        raise ArgumentError(
            f"convert_state: there is no {c.layer} in the state, expected {', '.join(c.names)}{within}."
        )
    left = [joined(path, c) for path in layers if path not in norms]
    return {path: _values(path, layer, c) for path, layer in norms.items()}, left


def _leaves(state: Mapping[Any, Any], c: Convention) -> Iterator[tuple[Path, Any]]:
    """Every array of a nested mapping, with its path; other collections than those of batch norms are left out."""
    for key, value in state.items():
        path = tuple(str(key).split(c.separator)) if c.separator else (str(key),)
        if not isinstance(value, Mapping):
            if not c.collections:
                yield path, value
        elif not c.collections:
            yield from ((path + below, leaf) for below, leaf in _leaves(value, c))
        elif key in c.collections:
            yield from _leaves(value, c._replace(collections=()))


def _values(path: Path, layer: Mapping[str, Any], c: Convention) -> Values:
    """What one layer has, checked."""
    where = f" of {joined(path, c)}" if path else ""
    if unexpected := [name for name in layer if name not in c.names]:
        raise ArgumentError(
            f"convert_state: {', '.join(unexpected)}{where} unexpected, expected only {', '.join(c.names)}."
        )
    statistics = c.names[MEAN : VAR + 1]
    missing = [name for name in statistics if name not in layer]
    if missing and not (c.untracked and len(missing) == len(statistics)):
        raise ArgumentError(
            f"convert_state: {', '.join(missing)}{where} missing, expected {', '.join(c.names)}."
        )
    values = [_array(name, layer.get(name), where) for name in c.names]
    shapes = {name: v.shape for name, v in zip(c.names[:COUNT], values, strict=False) if v is not None}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ShapeError(f"convert_state: the shapes{where} differ, expected one for all: {listed}.")
    if (var := values[VAR]) is not None and (var < 0).any():
        raise ArgumentError(
            f"convert_state: {c.names[VAR]}{where} has the value {var.min()}, expected none below 0."
        )
    return values + [None] * (COUNT + 1 - len(values))


def _array(name: str, value: Any, where: str) -> Array | None:
    """A copy of an array of any framework that is in the memory of the CPU."""
    if value is None:
        return None
    try:
        array = np.array(plain_array(getattr(value, "detach", lambda: value)(), "convert_state", name))
    except (RuntimeError, TypeError) as error:
        if isinstance(error, DtypeError):
            raise
        raise DtypeError(
            f"convert_state: {name}{where} makes no array of NumPy ({error}). Pass it in float32, on the CPU."
        ) from None
    counts = name in ("num_batches_tracked", "updates")
    floating = array.dtype.kind == "f" or array.dtype.name == "bfloat16"
    if not (array.dtype.kind in "iu" and array.ndim == 0 if counts else floating):
        expected = "one integer" if counts else "real floating numbers"
        raise DtypeError(
            f"convert_state: {name}{where} has shape {array.shape} and dtype {array.dtype}, expected {expected}."
        )
    return array


def written(layers: Mapping[Path, Values], c: Convention) -> dict[str, Any]:
    """The state of these layers by a framework's names."""
    state: dict[str, Any] = {name: {} for name in c.collections}
    for path, values in layers.items():
        for index, (name, value) in enumerate(zip(c.names, values, strict=False)):
            if value is None:
                continue
            inner = state[c.collections[index // MEAN]] if c.collections else state
            if c.separator:
                inner[c.separator.join((*path, name))] = value
                continue
            for part in path:
                inner = inner.setdefault(part, {})
            inner[name] = value
    return state
