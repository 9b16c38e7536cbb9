"""The true equation that is nearest to a wrong one: a part of its right side is replaced, and the result is proved.

Changes are screened by numbers; the first that is proved too is the answer. What differs from the wrong equation is the
mistake.
"""

from typing import NamedTuple

from xhat.lens.prover.edits import changes, eps_at_roots
from xhat.lens.prover.expressions import Node, Statement, free_indices, spell
from xhat.lens.prover.prove import Undecided, decide, is_linked, left_side, refuted, side

__all__ = ["Nearest", "nearest"]


class Nearest(NamedTuple):
    """A true equation, and what differs in it from the wrong one."""

    claim: str
    changes: tuple[str, ...]


def nearest(statement: Statement, k: int) -> Nearest | None:
    """The nearest true equation with the left side of step k, or None if no small change makes it true."""
    left, right = statement.left, statement.steps[k]
    in_scope = free_indices(left, right)
    for before in ((), *((edit,) for edit in eps_at_roots(right))):
        base = before[-1].result if before else right
        for edits in ((), *changes(base, left, in_scope)):
            node = edits[-1].result if edits else base
            if _is_true(left, node):
                return Nearest(f"{spell(left)} = {spell(node)}", tuple(map(str, (*before, *edits))))
    return None


def _is_true(left: Node, right: Node) -> bool:
    """Whether the equation holds for correction 0 or for correction 1."""
    indices, linked = free_indices(left, right), is_linked(left, right)
    if not set(indices) <= set(free_indices(left)):
        return False
    sides = left_side(left), side(right)
    for correction in (0, 1):
        try:
            if not refuted(*sides, indices, correction=correction, linked=linked):
                return decide(*sides, indices, correction=correction, linked=linked).holds
        except (Undecided, ValueError):
            continue
    return False
