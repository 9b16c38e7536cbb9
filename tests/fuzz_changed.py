"""Changes every field of contexts, plans, layers and moments to every value below, and uses them.

Under the sanitizers, with which `make sanitize` runs it, the process ends where a kernel leaves an array. It stops
after XHAT_FUZZ_SECONDS (60); XHAT_FUZZ_SEED (0) chooses the order.
"""

import itertools
import os
import random
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

import xhat
import xhat.numpy
from xhat.errors import XhatError

SHAPE = (8, 5, 3)
VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1, 3, 7.5, float("nan"), float("inf"), 10**6, 2**62, 10**30, "a", b"x", (), (1,), (1, 2, 3),
    (0, 0, 0), (10**6, 1, 1), (1, 10**6, 1), (1, 1, 10**6), (-10**6, -1, -1), (2**62, 2**62, 2**62), (10**6, 5, 3),
    (8, 500, 3), (8, 5, 300), (-8, 5, -3), [], {}, object(), np.zeros(3), np.zeros(SHAPE, object),
    np.zeros(SHAPE, ">f8"), np.zeros(SHAPE, np.int64), np.zeros((2, 2)), np.zeros((4, 5), np.float32), np.array(1.0),
    np.int64(3), np.zeros(0), np.broadcast_to(0.0, SHAPE), np.zeros((4, 5))[::-1], np.zeros(SHAPE)[::-1],
    np.zeros((16, 5, 3))[::2], np.zeros((4, 10))[:, ::2],
)  # fmt: skip
OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"activation": "relu", "residual": True},
    {"activation": "silu", "residual": True, "mask": True},
    {"activation": ("leaky_relu", 0.1), "axis": -1},
)


def replaced(value: Any, path: tuple[str, ...], new: Any) -> Any:
    """A named tuple with another value of a field, or of a field of a field."""
    name, *rest = path
    return value._replace(**{name: replaced(getattr(value, name), tuple(rest), new) if rest else new})


def paths(value: Any) -> Iterator[tuple[str, ...]]:
    """Every field of a named tuple, and of the named tuples in it."""
    for name in getattr(value, "_fields", ()):
        yield (name,)
        yield from ((name, *rest) for rest in paths(getattr(value, name)))


def problem(dtype: str, options: dict[str, Any]) -> tuple[Any, xhat.Context]:
    """dy and the context of a forward pass."""
    rng = np.random.default_rng(0)
    x, dy, residual = rng.normal(size=(3, *SHAPE)).astype(dtype)
    channels = 3 if "axis" in options else 5
    given = {**options}
    if "residual" in options:
        given["residual"] = residual
    if "mask" in options:
        given["mask"] = rng.random((8, 1, 3)) + 0.5
    return dy, xhat.batch_norm(x, np.ones(channels, dtype), np.zeros(channels, dtype), **given)[1]


def changes_of_contexts() -> Iterator[Callable[[], Any]]:
    """Backward passes of contexts with one or two fields of another value."""
    problems = [problem(dtype, options) for dtype in ("f8", "f4", "f2") for options in OPTIONS]
    for dy, context in problems:
        for path, value in itertools.product(paths(context), VALUES):
            yield lambda dy=dy, c=context, p=path, v=value: xhat.batch_norm_backward(dy, replaced(c, p, v))
            yield lambda dy=dy, c=context, p=path, v=value: xhat.gradient_paths(dy, replaced(c, p, v))
        for _, other in problems:  # fields of another call
            for name in context._fields:
                mixed = context._replace(**{name: getattr(other, name)})
                yield lambda dy=dy, c=mixed: xhat.batch_norm_backward(dy, c)


def changes_of_arrays() -> Iterator[Callable[[], Any]]:
    """Arrays of a context, changed in place."""
    for name, options, (what, value) in itertools.product(
        ("x", "statistics", "weights", "saved"),
        OPTIONS,
        (
            ("shape", (-1,)),
            ("dtype", "f2"),
            ("dtype", "f4"),
            ("dtype", "f8"),
            ("resize", (2,)),
            ("resize", (0,)),
        ),
    ):

        def run(name: str = name, options: Any = options, what: str = what, value: Any = value) -> None:
            dy, context = problem("f4", options)
            array = getattr(context, name)
            if array is None:
                return
            array = array if array.base is None else array.copy()
            context = context._replace(**{name: array})
            if what == "resize":
                array.resize(value, refcheck=False)
            else:
                setattr(array, what, value)
            xhat.batch_norm_backward(dy, context)

        yield run


def changes_of_layers() -> Iterator[Callable[[], Any]]:
    """Attributes of the NumPy layer, before the forward and before the backward pass."""
    x = np.random.default_rng(0).normal(size=SHAPE)
    names = [name for name in vars(xhat.numpy.BatchNorm(5)) if not name.startswith("_")]
    for name, value, late in itertools.product(names, VALUES, (False, True)):

        def run(name: str = name, value: Any = value, late: bool = late) -> None:
            layer = xhat.numpy.BatchNorm(5)
            if late:
                layer(x)
            setattr(layer, name, value)
            if not late:
                layer(x)
            layer.backward(x)
            layer(x, training=False)

        yield run


def changes_of_moments() -> Iterator[Callable[[], Any]]:
    """Fields of moments, merged with others."""
    x = np.random.default_rng(0).normal(size=SHAPE)
    found = xhat.moments(x)
    for name, value in itertools.product(found._fields, VALUES):
        yield lambda n=name, v=value: found.merge(found._replace(**{n: v}))
        yield lambda n=name, v=value: found._replace(**{n: v}).var()


def outcome(run: Callable[[], Any]) -> Exception | None:
    """What a call has raised."""
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            run()
    except Exception as error:
        return error
    return None


def main(seconds: float) -> int:
    """Run them all, in an order of its own, within this time. Returns 1 where a context raised no sentence of ours."""
    contexts = list(changes_of_contexts())
    others = [*changes_of_arrays(), *changes_of_layers(), *changes_of_moments()]
    ours = {id(run) for run in contexts}
    runs = contexts + others
    random.Random(int(os.environ.get("XHAT_FUZZ_SEED", "0"))).shuffle(runs)
    until, count, wrong = time.monotonic() + seconds, 0, 0
    for run in runs:
        if time.monotonic() > until:
            break
        count += 1
        error = outcome(run)
        if error is not None and id(run) in ours and not isinstance(error, XhatError):
            wrong += 1
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
    print(f"{count} of {len(runs)} changes, {wrong} of contexts without a sentence of ours")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(float(os.environ.get("XHAT_FUZZ_SECONDS", "60"))))
