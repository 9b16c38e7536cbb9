"""Two proofs about statistics of several batches: the merge of moments, and the running average.

They stand apart because the rest of the derivation is about one batch. The merge is proved for batches of any two
sizes and for small ones, and compared in 50 digits; the average is proved by induction.
"""

from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import mpmath
import numpy
import sympy

from xhat import equations
from xhat.lens.prover import normal_form
from xhat.lens.prover.domains import DIGITS, random_data

__all__ = ["AVERAGED", "averages", "merge_holds"]

Value = Any
Merge = Callable[..., tuple[Value, Value, Value]]

SIZES = range(1, 4)  # of each of the two batches
SEEDS = (1, 2, 3)
AVERAGED = "proved for every number of batches by induction"


def merge_holds(merge: Merge) -> bool:
    """Whether merge(moments of a, moments of b) are the moments of a and b together, with weights."""
    return _for_every_size(merge) and _for_small_sizes(merge) and _in_numbers(merge)


def _for_every_size(merge: Merge) -> bool:
    position = normal_form.POSITION
    x, w = sympy.IndexedBase("x")[position], sympy.IndexedBase("w")[position]
    sizes = sympy.symbols("n_a n_b", integer=True, positive=True)
    batches = [
        {x: sympy.IndexedBase(f"x_{s}")[position], w: sympy.IndexedBase(f"w_{s}")[position]} for s in "ab"
    ]
    totals = sympy.symbols("m_a m_b", positive=True)

    def sum_over(which: Sequence[int]) -> Callable[[Value], Value]:
        return lambda values: sympy.Add(
            *(normal_form.total(values.xreplace(batches[k]), sizes[k]) for k in which)
        )

    parts = [(totals[k], *equations.moments(x, sum_over([k]), totals[k], w)) for k in (0, 1)]
    whole = (sum(totals), *equations.moments(x, sum_over([0, 1]), sum(totals), w))
    relations = {normal_form.atom(batches[k][w], sizes[k]): totals[k] for k in (0, 1)}
    merged = merge(*parts[0], *parts[1])
    return all(normal_form.vanishes(a - b, relations) for a, b in zip(merged, whole, strict=True))


def _for_small_sizes(merge: Merge) -> bool:
    for first, second in product(SIZES, SIZES):
        x = numpy.array(sympy.symbols(f"x1:{first + second + 1}"), dtype=object)
        w = numpy.array(sympy.symbols(f"w1:{first + second + 1}", positive=True), dtype=object)
        totals = sympy.symbols("m_a m_b", positive=True)
        # The first weight of each batch is expressed by the total: denominators are then single symbols.
        w[0], w[first] = totals[0] - sum(w[1:first]), totals[1] - sum(w[first + 1 :])
        merged, whole = _both_ways(merge, x, w, first)
        differences = [sympy.expand(a - b) for a, b in zip(merged, whole, strict=True)]
        if any(sympy.expand(sympy.fraction(sympy.together(value))[0]) != 0 for value in differences):
            return False
    return True


def _in_numbers(merge: Merge) -> bool:
    with mpmath.workdps(DIGITS):
        for seed in SEEDS:
            data = random_data(seed, weighted=True)
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


def averages(track: Callable[..., Any]) -> bool:
    """Whether track with the weights 1, 1/2, 1/3, ... gives the average of all batches so far."""
    batch, total, k = sympy.symbols("batch total k")
    first = track(sympy.Symbol("any"), batch, 1) - batch
    step = track(total / (k - 1), batch, 1 / k) - (total + batch) / k
    return bool(sympy.simplify(first) == 0 and sympy.simplify(step) == 0)
