"""Which functions of a file are a batch norm, and which forward belongs to which backward, by their names.

`Function` is what is known of a function without calling it, whether the file was imported or only read.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from xhat.lens.checker.calling.adapter import Adapter, Unjudged, quantity
from xhat.lens.checker.calling.names import PASSES
from xhat.lens.checker.files.kinds import read_name, words_of

__all__ = ["Found", "Function", "Pair", "find_pairs", "named_pair"]

_STEPS = frozenset((*PASSES["forward"], "apply"))
# Parameters that a batch norm has and few other layers have: w, b and x say nothing.
_OWN = ("eps", "momentum", "running_mean", "running_var", "options", "rstd", "xhat")
_ABSTRACT = re.compile(r"^_|base|abstract|interface|mixin", re.IGNORECASE)
_KIND_OF_DATA = words_of("spatial 1d 2d 3d conv2d temporal volumetric images")
_PLAIN = Adapter()


@dataclass(frozen=True)
class Function:
    """A function or a class: its name, the names of its parameters (of a class: of its methods), and its bases."""

    name: str
    parameters: tuple[str, ...] = ()
    is_class: bool = False
    bases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pair:
    """The names of a forward, or a class, and of a backward; one of them may be None."""

    forward: str | None
    backward: str | None = None

    def __str__(self) -> str:
        return " and ".join(name for name in (self.forward, self.backward) if name is not None)


@dataclass
class Found:
    """The pairs of a file; what looks like batch norm and is not judged, with the reason; and the other names."""

    pairs: list[Pair] = field(default_factory=list)
    unjudged: list[tuple[str, str]] = field(default_factory=list)
    others: list[str] = field(default_factory=list)


_REASONS = {
    "other norm": "is not batch norm",
    "composed": "is composed of several layers",
    "evaluation": "is evaluation by its name",
    "action": "is no forward or backward by its name",
}


def find_pairs(functions: Sequence[Function], *, any_name: bool = True) -> Found:
    """Every pair of a file.

    Batch norm by its name comes first. If there is none, what has the parameters of a batch norm, and a forward beside
    a backward; with `any_name`, also what is called normalize, or the only forward, backward or layer.
    """
    found = Found()
    wanted = _completed(functions) or [f for f in functions if _may_be(f, functions, any_name)]
    wanted = _outermost(wanted or (_only(functions) if any_name else []))
    found.pairs = [Pair(f.name) for f in wanted if f.is_class] + _matched(
        [f for f in wanted if not f.is_class]
    )
    judged = {name for pair in found.pairs for name in (pair.forward, pair.backward)}
    for f in functions:
        if f.name in judged:
            continue
        reason = _REASONS.get(read_name(f.name).kind)
        if reason is None:
            found.others.append(f.name)
        else:
            found.unjudged.append((f.name, reason))
    return found


def _completed(functions: Sequence[Function]) -> list[Function]:
    """What is batch norm by its name; where no such function is a backward (or a forward), those called that alone.

    Beside a function with its own derivative (batch_norm, _fwd and _bwd), both of them belong to it.
    """
    named = [f for f in functions if _is_batch_norm(f)]
    roles = {read_name(f.name).role for f in named if not f.is_class}
    plain = [f for f in functions if not f.is_class and read_name(f.name).kind == "generic"]
    if not roles or "backward" in roles:
        missing = {"forward"} if roles == {"backward"} else set()
    elif any(read_name(f.name).role == "backward" for f in plain):
        missing = {"backward"} if "forward" in roles else {"backward", "forward"}
    else:
        missing = set()
    return named + [f for f in plain if read_name(f.name).role in missing]


def _is_batch_norm(f: Function) -> bool:
    reading = read_name(f.name)
    if f.is_class and (reading.role == "backward" or not _STEPS & set(f.parameters)):
        return False  # a gradient as a class of its own, or no layer
    return reading.kind == "batch norm"


def _may_be(f: Function, functions: Sequence[Function], any_name: bool) -> bool:
    reading = read_name(f.name)
    if reading.kind == "generic":
        if f.is_class:
            return bool(_STEPS & set(f.parameters)) and (any_name or "backward" in f.parameters)
        roles = {read_name(other.name).role for other in functions if read_name(other.name).kind == "generic"}
        if any_name or ({"forward", "backward"} <= roles and reading.role is not None):
            return True
    if f.is_class or reading.kind not in ("other", "generic") or f.name.startswith("__"):
        return False
    quantities = {quantity(name, _PLAIN) for name in f.parameters}
    affine = {"gamma", "beta"} <= {name.lower() for name in f.parameters}
    return affine or (reading.role is not None and bool(quantities & set(_OWN)))


def _only(functions: Sequence[Function]) -> list[Function]:
    """The only function of each role, or the only class with a forward; nothing if there are several."""
    plain = [f for f in functions if not f.is_class]
    roles = [[f for f in plain if read_name(f.name).role == role] for role in ("forward", "backward")]
    if any(roles):
        return [f for fs in roles for f in fs] if all(len(fs) <= 1 for fs in roles) else []
    layers = [f for f in functions if f.is_class and _STEPS & set(f.parameters)]
    return layers if len(layers) == 1 else []


def _outermost(functions: Sequence[Function]) -> list[Function]:
    """Without base classes that are called so, and without private parts of public functions."""
    bases = {name for f in functions for name in f.bases}
    kept = [f for f in functions if not (f.is_class and f.name in bases and _ABSTRACT.search(f.name))]
    public = [f for f in kept if not f.name.startswith("_") or read_name(f.name).role is not None]
    return public or kept


def _matched(functions: Sequence[Function]) -> list[Pair]:
    """Each backward with the forward whose name is nearest; forwards without a backward stand alone."""
    forwards = [f.name for f in functions if read_name(f.name).role != "backward"]
    pairs = []
    for name in (f.name for f in functions if read_name(f.name).role == "backward"):
        pairs.append(Pair(_nearest(name, forwards), name))
    used = {pair.forward for pair in pairs}
    pairs += [Pair(name) for name in forwards if name not in used]
    order = {f.name: i for i, f in enumerate(functions)}  # as in the file
    return sorted(pairs, key=lambda pair: min(order[name] for name in (pair.forward, pair.backward) if name))


def _nearest(backward: str, forwards: Iterable[str]) -> str | None:
    own = read_name(backward)

    def distance(name: str) -> tuple[int, int, bool]:
        other = read_name(name)
        return len(own.words ^ other.words), len(own.variants ^ other.variants), other.role is None

    same = [f for f in forwards if not (read_name(f).words ^ own.words) & _KIND_OF_DATA]
    return min(same, key=distance, default=None)


def named_pair(functions: Sequence[Function], forward: str | None, backward: str | None) -> Pair:
    """The pair of the names that were asked for; "none" stands for no function. The other one is found by its name.

    Raises Unjudged for a name that the file does not have.
    """
    known = {f.name: f for f in functions}
    for name in (forward, backward):
        if name not in (None, "none") and name not in known:
            has = f" (it has {', '.join(known)})" if known else ""
            raise Unjudged(f"it has no function {name!r}{has}.")
    if forward == "none" or backward == "none" or (forward and (backward or known[forward].is_class)):
        return Pair(forward if forward != "none" else None, backward if backward != "none" else None)
    plain = [f for f in functions if not f.is_class and f.name not in (forward, backward)]
    if backward is not None:
        others = [f.name for f in _outermost(plain) if read_name(f.name).role != "backward" and _looks(f)]
        return Pair(_nearest(backward, others), backward)
    others = [f.name for f in _outermost(plain) if read_name(f.name).role == "backward"]
    return Pair(forward, _nearest(str(forward), others))


def _looks(f: Function) -> bool:
    return _is_batch_norm(f) or _may_be(f, (), True)
