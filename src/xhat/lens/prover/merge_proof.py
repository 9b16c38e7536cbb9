"""The merge of two batches' moments, proved: for batches of any two sizes, for small ones, and in 50 digits.

It has a file of its own since it's about two batches, while the rest of the derivation is about one.
"""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import mpmath
import numpy
import sympy

from xhat import equations
from xhat.lens.prover import normal_form as sums
from xhat.lens.prover.domains import DIGITS, random_numbers

__all__ = ["merge_holds"]

Value = Any
Merge = Callable[..., tuple[Value, Value, Value]]

SIZES = range(1, 4)  # of each of the two batches: together 2 ... 6
SEEDS = (1, 2, 3)


def merge_holds(merge: Merge) -> bool:
    """Whether merge(moments of a, moments of b) are the moments of a and b together, with weights."""
    return _for_every_size(merge) and _for_small_sizes(merge) and _in_numbers(merge)


def _for_every_size(merge: Merge) -> bool:
    place = sums.POSITION
    x, w = sympy.IndexedBase("x")[place], sympy.IndexedBase("w")[place]
    sizes = sympy.symbols("n_a n_b", integer=True, positive=True)
    batches = [{x: sympy.IndexedBase(f"x_{s}")[place], w: sympy.IndexedBase(f"w_{s}")[place]} for s in "ab"]
    masses = sympy.symbols("m_a m_b", positive=True)

    def sum_of(which: Sequence[int]) -> Callable[[Value], Value]:
        return lambda values: sympy.Add(*(sums.total(values.xreplace(batches[k]), sizes[k]) for k in which))

    parts = [(masses[k], *equations.moments(x, sum_of([k]), masses[k], w)) for k in (0, 1)]
    whole = (sum(masses), *equations.moments(x, sum_of([0, 1]), sum(masses), w))
    relations = {sums.atom(batches[k][w], sizes[k]): masses[k] for k in (0, 1)}
    merged = merge(*parts[0], *parts[1])
    return all(sums.vanishes(a - b, relations) for a, b in zip(merged, whole, strict=True))


def _for_small_sizes(merge: Merge) -> bool:
    for first, second in product(SIZES, SIZES):
        x = numpy.array(sympy.symbols(f"x1:{first + second + 1}"), dtype=object)
        w = numpy.array(sympy.symbols(f"w1:{first + second + 1}", positive=True), dtype=object)
        masses = sympy.symbols("m_a m_b", positive=True)
        # The first weight of each batch makes its total the symbol: denominators stay short.
        w[0], w[first] = masses[0] - sum(w[1:first]), masses[1] - sum(w[first + 1 :])
        merged, whole = _both_ways(merge, x, w, first)
        differences = [sympy.expand(a - b) for a, b in zip(merged, whole, strict=True)]
        if any(sympy.expand(sympy.fraction(sympy.together(value))[0]) != 0 for value in differences):
            return False
    return True


def _in_numbers(merge: Merge) -> bool:
    with mpmath.workdps(DIGITS):
        for seed in SEEDS:
            data = random_numbers(seed, weighted=True)
            x, w = numpy.array(data["x"]), numpy.array(data["w"])
            merged, whole = _both_ways(merge, x, w, len(x) // 2)
            if any(abs(a - b) > mpmath.mpf(10) ** (5 - DIGITS) for a, b in zip(merged, whole, strict=True)):
                return False
    return True


def _both_ways(merge: Merge, x: Value, w: Value, first: int) -> tuple[Sequence[Value], Sequence[Value]]:
    """The merged moments of x[:first] and x[first:], and the moments of x."""

    def moments_of(part: slice) -> tuple[Value, Value, Value]:
        m = sum(w[part])
        return (m, *equations.moments(x[part], numpy.sum, m, w[part]))

    return merge(*moments_of(slice(first)), *moments_of(slice(first, None))), moments_of(slice(None))
