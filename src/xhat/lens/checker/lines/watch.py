"""Watches the values that the code under test computes, and may replace some of them.

While `watching`, the functions of the files have the code that `rewrite` makes; afterwards they have their own again.
No trace function is set, so debuggers and coverage tools are not disturbed. Nothing is judged here.
"""

import contextlib
import gc
import linecache
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial, wraps
from importlib import import_module
from pathlib import Path
from types import CodeType, FunctionType, MethodType
from typing import Any

import numpy as np

from xhat.lens.checker.calling import arrays
from xhat.lens.checker.calling.runner import Runner
from xhat.lens.checker.expected.probes import Array
from xhat.lens.checker.lines.rewrite import HOOK, Site, codes_in, rewritten

__all__ = ["Moment", "Watch", "files_of", "watching"]

_LIMIT = 100_000  # values of one run; code with more of them is not examined
_OURS = str(Path(__file__).parents[3])
_STANDARD = sysconfig.get_paths()["stdlib"]
_INNER = ("__wrapped__", "fun", "fwd", "bwd", "func", "__func__", "py_func")  # of partials, jit, custom_vjp


@dataclass(frozen=True)
class Moment:
    """One evaluation: the number of its site, and how often this was evaluated before in the same pass."""

    site: int
    occurrence: int


@dataclass
class Watch:
    """The hook: gets every value. Records are those of the last pass in which a site had numbers."""

    sites: list[Site] = field(default_factory=list)
    records: list[dict[Moment, Array]] = field(default_factory=list)
    detached: set[int] = field(default_factory=set)  # sites with a torch tensor that requires no gradient
    plan: dict[Moment, Array] = field(default_factory=dict)
    recording: bool = True
    hidden: bool = False  # some values had no numbers: they were traced
    overflowed: bool = False
    counts: dict[int, int] = field(default_factory=dict)

    def begin(self) -> None:
        """A new pass: the forward is called again, or a backward that has no forward."""
        self.records.append({})
        self.counts.clear()

    def __call__(self, number: int, value: Any) -> Any:
        if not _is_numeric(value):
            return value
        moment = Moment(number, self.counts.get(number, 0))
        self.counts[number] = moment.occurrence + 1
        if moment in self.plan:
            value = _like(value, self.plan[moment])
        if self.recording and self.records:
            self._record(moment, value)
        return value

    def _record(self, moment: Moment, value: Any) -> None:
        if len(self.records[-1]) >= _LIMIT:
            self.overflowed = True
            return
        try:
            numbers = arrays.read(value)
        except Exception:  # a tracer has no numbers
            self.hidden = True
            return
        self.records[-1][moment] = numbers
        if hasattr(value, "requires_grad"):
            (self.detached.discard if value.requires_grad else self.detached.add)(moment.site)

    def seen(self) -> dict[Moment, Array]:
        """The values in the order of their evaluation; of several passes the last one with numbers counts."""
        last: dict[int, int] = {}
        for k, record in enumerate(self.records):
            last |= {moment.site: k for moment in record}
        return {
            moment: value
            for k, record in enumerate(self.records)
            for moment, value in record.items()
            if last[moment.site] == k
        }


def _is_numeric(value: Any) -> bool:
    if isinstance(value, bool | np.bool_):
        return False
    if isinstance(value, int | float | np.ndarray | np.generic):
        return not isinstance(value, np.ndarray | np.generic) or value.dtype.kind in "fiuV"
    return hasattr(value, "__array__") and hasattr(value, "dtype") and hasattr(value, "shape")


def _like(value: Any, numbers: Array) -> Any:
    """The numbers as the same kind of value. A torch tensor keeps its place in the graph."""
    numbers = np.asarray(numbers)
    if numbers.size == 1 and isinstance(value, np.generic):
        return value.dtype.type(numbers.item())
    if numbers.size == 1 and isinstance(value, int | float):
        number = float(numbers.item())
        return int(number) if isinstance(value, int) and number.is_integer() else number
    if isinstance(value, int | float | np.generic):
        return numbers
    if isinstance(value, np.ndarray):
        return np.asarray(numbers).astype(value.dtype if value.dtype.kind == "f" else float)
    if hasattr(value, "detach"):
        made = value.new_tensor(np.ascontiguousarray(numbers))
        return value + (made - value).detach() if made.shape == value.shape else made
    return import_module("jax.numpy").asarray(numbers, dtype=value.dtype)


# ------------------------------------------------------------------------------------------------- files


def files_of(*functions: Any) -> list[str]:
    """The source files of these functions and of what they call, without those of libraries."""
    found: dict[str, None] = {}
    seen: set[int] = set()
    waiting = [(f, True) for f in functions if f is not None]
    while waiting:
        thing, given = waiting.pop()
        if id(thing) in seen or len(seen) > 2000:
            continue
        seen.add(id(thing))
        if isinstance(thing, FunctionType):
            name = thing.__code__.co_filename
            if name.startswith(_OURS):
                waiting += [(inner, given) for inner in _closure(thing)]
            elif given or not ("site-packages" in name or name.startswith(_STANDARD)):
                found[name] = None
                called = (thing.__globals__.get(n) for n in thing.__code__.co_names)
                waiting += [(c, False) for c in (*_closure(thing), *called) if callable(c)]
        elif isinstance(thing, type):
            held = [v for c in thing.__mro__[:-1] for v in vars(c).values()]
            waiting += [(v, False) for v in held if callable(v) or hasattr(v, "__func__")]
        elif type(thing).__module__.startswith("xhat.lens.checker."):  # how a layer is called
            waiting += [(held, given) for held in vars(thing).values()]
        waiting += [(inner, given) for name in _INNER if callable(inner := _inner(thing, name))]
    return [name for name in found if linecache.getlines(name)]


def _inner(thing: Any, name: str) -> Any:
    held = isinstance(thing, FunctionType | MethodType | staticmethod | classmethod | partial)
    known = held or type(thing).__module__.partition(".")[0] in ("jax", "jaxlib", "numba", "builtins")
    return getattr(thing, name, None) if known else None


def _closure(function: FunctionType) -> list[Any]:
    found = []
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):
            found.append(cell.cell_contents)
    return found


# ---------------------------------------------------------------------------------------------- watching


@contextlib.contextmanager
def watching(runner: Runner, files: list[str]) -> Iterator[tuple[Runner, Watch]]:
    """A runner whose functions pass their values through the watch. Their code is restored afterwards."""
    watch = Watch()
    changed: list[tuple[FunctionType, CodeType]] = []
    scopes: list[dict[str, Any]] = []
    try:
        for name in files:
            for function, code in _rewritten_functions(name, watch.sites):
                changed.append((function, function.__code__))
                function.__code__ = code
                function.__globals__[HOOK] = watch
                scopes.append(function.__globals__)
        if runner.forward is None:
            watched = replace(runner, backward=_counted(runner.backward, watch))
        else:
            watched = replace(runner, forward=_counted(runner.forward, watch))
        with _eager(runner):
            yield watched, watch
    finally:
        for function, code in changed:
            function.__code__ = code
        for scope in scopes:
            scope.pop(HOOK, None)


def _eager(runner: Runner) -> contextlib.AbstractContextManager[Any]:
    """JAX without jit, so that its functions compute numbers line by line."""
    jax = sys.modules.get("jax")
    if runner.spec.kind != "jax" or jax is None:
        return contextlib.nullcontext()
    return jax.disable_jit()  # type: ignore[no-any-return]


def _rewritten_functions(filename: str, sites: list[Site]) -> list[tuple[FunctionType, CodeType]]:
    """All functions of a file that exist, with their new code. The file has to be the one that they came from."""
    source = "".join(linecache.getlines(filename))
    try:
        codes, added = rewritten(source, filename, len(sites))
        originals = codes_in(compile(source, filename, "exec", dont_inherit=True))
    except (SyntaxError, ValueError, RecursionError):
        return []
    sites += added
    found = []
    for function in [f for f in gc.get_objects() if type(f) is FunctionType]:
        old = function.__code__
        key = old.co_qualname, old.co_firstlineno
        if old.co_filename != filename or key not in codes:
            continue
        if _alike(originals[key], old) and codes[key].co_freevars == old.co_freevars:
            found.append((function, codes[key]))
    return found


def _alike(a: CodeType, b: CodeType) -> bool:
    """Whether two codes come from the same source. (Their instructions may differ by the imports of the module.)"""
    lines = [{line for _, _, line in code.co_lines()} for code in (a, b)]
    return lines[0] == lines[1] and a.co_varnames == b.co_varnames and set(a.co_names) == set(b.co_names)


def _counted(function: Callable[..., Any] | None, watch: Watch) -> Callable[..., Any] | None:
    if function is None:
        return None

    @wraps(function)
    def counted(*positional: Any, **keywords: Any) -> Any:
        watch.begin()
        return function(*positional, **keywords)

    return counted
