"""What the tests of cached plans share: outcomes to compare, and arrays in every form.

`no_plans` is the reference: the same call with an empty cache. The oracle judges that one in test_ops.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from conftest import DTYPES, Array, Layout

import xhat
from xhat.errors import XhatError
from xhat.plan import plan_of


@contextmanager
def no_plans() -> Iterator[None]:
    """Starts with an empty cache of plans."""
    plan_of.cache_clear()
    yield


@contextmanager
def planned() -> Iterator[None]:
    """No plan is made in here: all are in the cache."""
    before = plan_of.cache_info().misses
    yield
    assert plan_of.cache_info().misses == before


def contents(value: Any) -> Any:
    """Something equal for equal bits, shapes, dtypes, types and order in memory."""
    if isinstance(value, np.ndarray):
        return type(value), value.dtype, value.shape, np.argsort(value.strides).tolist(), value.tobytes()
    if isinstance(value, xhat.Context):
        names = ("x", "mean", "var", "gamma", "beta", "saved", "weights", "count", "overwritten", "plan")
        return [contents(getattr(value, name)) for name in names], repr(value)
    return [contents(v) for v in value] if isinstance(value, tuple) else repr(value)


def outcome(call: Callable[[], Any]) -> Any:
    """What a call returns, or raises, and what it warns of."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        try:
            result = contents(call())
        except (XhatError, ValueError, TypeError) as error:
            result = type(error), str(error)
    return result, [str(w.message) for w in warned]


class Case:
    """Arrays of one signature; with the same seed the same numbers, and memory of their own."""

    def __init__(
        self, layout: Layout, dtype: Any = np.float32, seed: str = "", residual: bool = False
    ) -> None:
        self.x, self.dy = layout.array("x" + seed, dtype, offset=1), layout.array("dy" + seed, dtype)
        self.y, self.dx, self.dresidual = (layout.empty(dtype) for _ in range(3))
        rng = np.random.default_rng(len(seed))
        self.gamma, self.beta = (rng.normal(size=(2, *layout.channels)) + 1).astype(dtype)
        self.options: dict[str, Any] = {"axis": layout.axis}
        self.residual = layout.array("r" + seed, dtype) if residual else None

    def forward(self, **more: Any) -> tuple[Array, xhat.Context]:
        """y and the context."""
        options = {**self.options, "residual": self.residual, **more}
        return xhat.batch_norm(self.x, self.gamma, self.beta, **options)

    def both(self, out: bool = False, places: bool | None = None, **more: Any) -> tuple[Any, ...]:
        """Both passes; y into its place or not, and gradients into theirs, as y unless that is said."""
        y, context = self.forward(**more, **({"out": self.y} if out else {}))
        dresidual = self.dresidual if self.residual is not None else None
        pair = (self.dx, dresidual) if (out if places is None else places) else None
        return y, context, xhat.batch_norm_backward(self.dy, context, out=pair)


LAYOUT = Layout((6, 5, 4), lambda a: a, 1)


class Labelled(np.ndarray[Any, Any]):
    """A class of its own."""


def askew(a: Array) -> Array:
    """The same numbers one byte beside where they should lie."""
    place = np.zeros(a.nbytes + 1, np.uint8)[1:].view(a.dtype).reshape(a.shape)
    place[...] = a
    return place


def locked(a: Array) -> Array:
    """The same numbers, read-only."""
    a = a.copy()
    a.flags.writeable = False
    return a


def beside(a: Array, step: int = 1) -> tuple[Array, Array]:
    """Two arrays in one memory, so many elements apart; the first has a's numbers."""
    room = np.zeros(a.size + abs(step), a.dtype)
    first, second = (room[n : n + a.size].reshape(a.shape) for n in (max(0, -step), max(0, step)))
    first[...] = a
    return first, second


def otherwise(a: Array) -> Array:
    """The same numbers with other strides."""
    return np.ascontiguousarray(a.T).T


def swapped(a: Array) -> Array:
    """The same numbers in the other byte order."""
    return a.astype(a.dtype.newbyteorder())


FORMS: dict[str, Callable[[Array], Any]] = {
    "a list": lambda a: a.tolist(),
    "a subclass": lambda a: a.view(Labelled),
    "a masked array": lambda a: np.ma.masked_array(a, a > 1),
    "askew": askew,
    "otherwise": otherwise,
    "reversed": lambda a: a[::-1],
    "every other": lambda a: np.repeat(a, 2, axis=-1)[..., ::2],
    "swapped": swapped,
    "an int": lambda a: a.astype(np.int32),
    "wider": lambda a: a.astype(np.float64),
    "narrower": lambda a: a.astype(np.float16),
    "bfloat16": lambda a: a.astype(DTYPES["bfloat16"]),
    "as bits": lambda a: a.view(np.int32),
    "shorter": lambda a: a[:-1],
    "one value": lambda a: a[:1, ..., :1] if a.ndim > 1 else a[:1],
    "empty": lambda a: a[:0],
    "of another shape": lambda a: a.reshape(-1),
    "with a name for its dtype": lambda a: a.view(np.dtype(a.dtype, metadata={"name": "x"})),
    "locked": locked,
    "not an array": lambda _: object(),
}


def warm() -> Case:
    """Arrays whose calls, with and without places for the results, have plans."""
    case = Case(LAYOUT)
    ways = [(out, places) for out in (False, True) for places in (False, True)]
    for out, places in ways:
        case.both(out, places)
    with planned():
        for out, places in ways:
            case.both(out, places)
    return case
