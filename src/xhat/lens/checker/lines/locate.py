"""Where the mistakes of wrong outputs are: the first wrong lines, and the formulas that the outputs obey.

`first_line` and `formula` find them; this chooses the batches and the outputs.
"""

from collections.abc import Sequence

import numpy as np

from xhat.lens.checker.diagnosis.record import Diagnosis
from xhat.lens.checker.expected.rounding import TOLERANCE
from xhat.lens.checker.formulas.formula import formulas
from xhat.lens.checker.formulas.terms import LEGEND, UNKNOWN
from xhat.lens.checker.lines.first_line import wrong_lines
from xhat.lens.checker.verdict import FormulaRead, WrongLine

__all__ = ["located"]

# 16 bits are too few to recognize a value.
TOLERANCES = {dtype: TOLERANCE[dtype] for dtype in ("float64", "float32")}
_OUTPUTS = ("y", "dx", "dgamma", "dbeta")


def located(
    results: Sequence[Diagnosis],
) -> tuple[tuple[WrongLine, ...], tuple[FormulaRead, ...], tuple[str, ...]]:
    """The wrong lines and the formulas of the first layout with a wrong output, and notes on them."""
    found = next((r for r in results if _wrong(r)), None)
    if found is None or found.fit.dtype not in TOLERANCES:
        return (), (), ()
    fit, wrong, tolerance = found.fit, _wrong(found), TOLERANCES[found.fit.dtype]
    correction = fit.best[0].correction
    with np.errstate(all="ignore"):
        try:
            lines, notes = wrong_lines(found.runner, fit.batch, correction, wrong, tolerance)
        except Exception as e:  # other people's code may do anything; the verdict stands without its line
            lines, notes = (), [f"Its lines could not be examined ({type(e).__name__}: {e})."]
        read = formulas(found.runner, fit.batch, correction, wrong, tolerance)
    notes += [LEGEND] if read else []
    notes += [UNKNOWN] if any("[?]" in formula.yours for formula in read) else []
    return lines, read, tuple(notes)


def _wrong(result: Diagnosis) -> set[str]:
    return {row.output for row in result.rows if row.output in _OUTPUTS and row.right is False}
