"""Sums over a part of a channel: the first block of its values, all but one value, or one value twice.

Kernels that sum in blocks make these mistakes on channels that do not fit a block. Only searches live here.
"""

import numpy as np

from xhat.lens.checker.expected.probes import Array

__all__ = ["part_of_the_sum"]


def part_of_the_sum(terms: Array, found: Array, allowed: Array) -> str | None:
    """Which values of every channel add up to the sums found, in words; None if it is no such part.

    terms: (C, m), the terms of the exact sums; found, allowed: (C,), the sums found and the bounds on their errors.
    """
    m = terms.shape[1]
    if m < 3 or not np.isfinite(found).all():
        return None
    allowed = np.maximum(allowed, 1e-12 * np.abs(terms).sum(axis=1))
    first = (np.abs(np.cumsum(terms, axis=1) - found[:, None]) / allowed[:, None]).max(axis=0)
    count = 1 + int(first.argmin())
    if first[count - 1] <= 1 and count < m:
        return f"the sum of the first {count:,} of {m:,} values of each channel"
    missing = terms.sum(axis=1) - found
    for sign, words in ((1, "is not in the sum"), (-1, "is summed twice")):
        alone = (np.abs(sign * missing[:, None] - terms) <= allowed[:, None]).all(axis=0)
        places = np.flatnonzero(alone)
        if len(places) == 1:
            return f"value {places[0] + 1:,} of {m:,} of each channel {words}"
    return None
