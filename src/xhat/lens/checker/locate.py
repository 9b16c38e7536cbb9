"""Where the mistakes of wrong outputs are: the first wrong lines, and the formulas that the outputs obey.

`first_line` and `formula` find them; this chooses the batches and the outputs.
"""

from collections.abc import Collection

from xhat.lens.checker.first_line import wrong_lines
from xhat.lens.checker.formula import LEGEND, UNKNOWN, formulas
from xhat.lens.checker.probes import probes
from xhat.lens.checker.rounding import TOLERANCE
from xhat.lens.checker.runner import Runner
from xhat.lens.checker.verdict import FormulaRead, WrongLine

__all__ = ["located"]

_OUTPUTS = ("y", "dx", "dgamma", "dbeta")


def located(
    runner: Runner, eps: float, correction: int, dtype: str, wrong: Collection[str]
) -> tuple[tuple[WrongLine, ...], tuple[FormulaRead, ...], tuple[str, ...]]:
    """The wrong lines, the formulas and notes on them. `dtype`: in which the code computes; `wrong`: its outputs."""
    chosen = {output for output in _OUTPUTS if output in wrong}
    if not chosen or dtype not in ("float64", "float32"):
        return (), (), ()
    affine = runner.forward is None or runner.takes("gamma")
    batch = probes(runner.spec.layout, runner.spec.dtype, eps, affine)
    lines, notes = wrong_lines(runner, batch, correction, chosen, TOLERANCE[dtype])
    read = formulas(runner, batch, correction, chosen, TOLERANCE[dtype])
    notes += [LEGEND] if read else []
    notes += [UNKNOWN] if any("[?]" in formula.yours for formula in read) else []
    return lines, read, tuple(notes)
