"""The cases of a dump: which array is which quantity, and whether they fit together.

Nothing is computed or judged here. An array of several cases has the name of its case before the last slash:
"case0/x". A name without a slash belongs to every case.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from xhat.errors import ArgumentError, ShapeError
from xhat.lens.checker.calling.adapter import Adapter, quantity
from xhat.lens.checker.expected.probes import UNIT, Array, Layout
from xhat.lens.checker.kernels.dumps import as_float64, names_of

__all__ = ["Case", "layouts_of", "read_cases"]

_USUAL = Adapter()
_OF_X = ("dy", "y", "dx", "xhat")
_OF_CHANNELS = (
    "gamma",
    "beta",
    "dgamma",
    "dbeta",
    "mean",
    "var",
    "std",
    "rstd",
    "running_mean",
    "running_var",
)
_RESULTS = ("y", "dx", "dgamma", "dbeta", "mean", "var", "std", "rstd")
_SETTINGS = ("eps", "momentum", "correction", "axis", "layout", "training", "mode")
_OTHER_NAMES = {
    "ddof": "correction",
    "dataformat": "layout",
    "format": "layout",
    "numfeatures": "-",
    "m": "-",
}
_AFTER = re.compile(r"^(new|updated)|(after|new|out|updated)$")
_MEMORY = re.compile(r"^(x|dy)(buffer|strides|offset)$")  # of the strided probe, beside x itself
_BEFORE = re.compile(r"^(old|initial)|(before|old|initial)$")


@dataclass
class Case:
    """The arrays of one case as float64; `dtypes` has the dtype of each, and `settings` eps, momentum, axis, ..."""

    name: str
    arrays: dict[str, Array] = field(default_factory=dict)
    dtypes: dict[str, str] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)

    @property
    def title(self) -> str:
        return f"{self.name}: " if self.name else ""

    @property
    def has_results(self) -> bool:
        return bool(self.results) or any(name.endswith(" after") for name in self.arrays)

    @property
    def results(self) -> list[str]:
        return [name for name in _RESULTS if name in self.arrays]

    def unit(self, name: str) -> float:
        """The unit roundoff of the dtype of an array, and that of x if it is coarser than x."""
        return min(UNIT[self.dtypes[name]], UNIT[self.dtypes["x"]])

    def by_channel(self, name: str, layout: Layout) -> Array:
        """A parameter or a statistic, so that it broadcasts against x."""
        shape = [1] * self.arrays["x"].ndim
        shape[layout.axis] = -1
        return self.arrays[name].reshape(shape)


def read_cases(dump: Mapping[str, Any]) -> list[Case]:
    """All cases, in the order of the dump. Raises ArgumentError, ShapeError or DtypeError, with the array's name."""
    if not isinstance(dump, Mapping):
        raise ArgumentError(
            f"check: the dump is a {type(dump).__name__}, expected a mapping of names to arrays."
        )
    cases: dict[str, Case] = {}
    shared = {key: value for key, value in dump.items() if "/" not in str(key)}
    for key in map(str, dump):
        prefix = key.rpartition("/")[0]
        cases.setdefault(prefix, Case(prefix))
    if len(cases) > 1:
        cases.pop("", None)  # its arrays belong to all others
    if not cases:
        raise ArgumentError("check: the dump is empty, expected x and y at least.")
    for case in cases.values():
        for key, value in shared.items():
            _put(case, str(key), value)
        for key, value in dump.items():
            before, slash, name = str(key).rpartition("/")
            if slash and before == case.name:
                _put(case, name, value, again=name in shared)
        _check(case)
    return list(cases.values())


def meaning(name: str) -> str | None:
    """The quantity that a name in a dump denotes; running statistics after the update end in " after"."""
    plain = re.sub(r"[\W_]", "", name.lower())
    if _MEMORY.match(plain):
        return "-"
    if plain in _SETTINGS:
        return plain
    if plain in _OTHER_NAMES:
        return _OTHER_NAMES[plain]
    for pattern, end in ((_AFTER, " after"), (_BEFORE, "")):
        bare = quantity(pattern.sub("", plain), _USUAL)
        if pattern.search(plain) and bare in ("running_mean", "running_var"):
            return bare + end
    if plain.endswith("grad") and (found := quantity("grad" + plain.removesuffix("grad"), _USUAL)):
        return found  # x.grad, weight_grad
    return quantity(plain, _USUAL)


def _put(case: Case, name: str, value: Any, again: bool = False) -> None:
    found = meaning(name)
    if found in _SETTINGS:
        case.settings[str(found)] = _setting(case, name, value)
        return
    known = (*_OF_X, *_OF_CHANNELS, "x", "running_mean after", "running_var after")
    if found not in known:
        case.unused += [] if found in ("-", "m") else [name]
        return
    if found in case.arrays and not again:
        raise ArgumentError(
            f"check: {case.title}{name} is one of two arrays for {found}, expected one; rename or remove the other."
        )
    case.arrays[found], case.dtypes[found] = as_float64(case.title + name, value)


def _setting(case: Case, name: str, value: Any) -> Any:
    array = np.asarray(value)
    if array.size != 1:
        raise ShapeError(f"check: {case.title}{name} has shape {array.shape}, expected one value.")
    return array.reshape(()).item()


def _check(case: Case) -> None:
    """Raise the first sentence that applies: no x, nothing to judge, values that are not finite, shapes."""
    names = names_of(case.arrays | dict.fromkeys(case.unused))
    if "x" not in case.arrays:
        raise ArgumentError(
            f"check: {case.title}the dump has no x (it has {names}), expected the input of the kernel as x."
        )
    x = case.arrays["x"]
    if x.ndim < 2 or not x.size:
        raise ShapeError(
            f"check: {case.title}x has shape {x.shape}, expected a batch and channels, such as (N, C)."
        )
    if not case.has_results and not case.name:
        raise ArgumentError(
            f"check: {case.title}the dump has no result (it has {names}), expected y, or dy and dx, or mean and var."
        )
    for name in ("x", "gamma", "beta", "dy", "running_mean", "running_var"):
        wrong = np.argwhere(~np.isfinite(case.arrays.get(name, np.zeros(1))))
        if len(wrong):
            place = tuple(map(int, wrong[0]))
            raise ArgumentError(
                f"check: {case.title}{name} has {len(wrong)} values that are not finite, the first at {place}; "
                "expected finite inputs."
            )
    for name in _OF_X:
        if name in case.arrays and case.arrays[name].shape != x.shape:
            shape = case.arrays[name].shape
            raise ShapeError(
                f"check: {case.title}{name} has shape {shape}, expected {x.shape}, the shape of x."
            )
    sizes = {name: case.arrays[name].size for name in case.arrays if name.split()[0] in _OF_CHANNELS}
    for name, size in sizes.items():
        first = next(iter(sizes))
        if size != sizes[first]:
            raise ShapeError(
                f"check: {case.title}{name} has {size} values and {first} {sizes[first]}, expected one a channel."
            )
    eps = case.settings.get("eps", 0.0)
    if not isinstance(eps, int | float) or not 0 <= eps < np.inf:
        raise ArgumentError(f"check: {case.title}eps is {eps!r}, expected a finite number of at least 0.")


def layouts_of(case: Case, layout: str | None, axis: int | None) -> list[Layout]:
    """The channel axes that the shapes allow, the most usual ones first. Raises ArgumentError or ShapeError."""
    shape = case.arrays["x"].shape
    if layout is None:
        layout = case.settings.get("layout")
    chosen: Any = case.settings.get("axis") if axis is None else axis
    if layout is not None:
        if len(str(layout)) != len(shape) or str(layout).upper().count("C") != 1:
            raise ArgumentError(
                f"check: {case.title}layout is {layout!r} and x has shape {shape}, expected a letter an axis, one C."
            )
        chosen = str(layout).upper().index("C")
    sizes = [case.arrays[name].size for name in case.arrays if name.split()[0] in _OF_CHANNELS]
    if chosen is not None:
        if not isinstance(chosen, int) or not -len(shape) <= chosen < len(shape):
            raise ArgumentError(
                f"check: {case.title}axis is {chosen!r}, expected an axis of x, of shape {shape}."
            )
        axes = [chosen % len(shape)]
    else:
        axes = sorted(range(len(shape)) if sizes else {1, len(shape) - 1}, key=lambda a: (a != 1, -a))
    fitting = [a for a in axes if not sizes or shape[a] == sizes[0]]
    if not fitting:
        where = f"channel axis {axes[0]}" if chosen is not None else "any axis"
        raise ShapeError(
            f"check: {case.title}the parameters and statistics have {sizes[0]} values, expected the length of {where} "
            f"of x, of shape {shape}."
        )
    return [_layout(a, shape) for a in fitting]


def _layout(axis: int, shape: tuple[int, ...]) -> Layout:
    """The layout with its usual name, and the axis that is most often mistaken for the channels."""
    names = {(2, 1): "NC", (2, 0): "CN", (3, 1): "NCL", (3, 2): "NLC", (4, 1): "NCHW", (4, 3): "NHWC"}
    last = len(shape) - 1
    mistaken = (last if axis != last else 1) if len(shape) > 2 else 1 - axis
    return Layout(names.get((len(shape), axis), f"{len(shape)} axes"), axis, mistaken, (shape,))
