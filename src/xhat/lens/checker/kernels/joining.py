"""The verdicts about several cases as one.

Nothing is judged here: rows, mistakes and sentences get the names of their cases, and equal ones are made one.
"""

from collections.abc import Iterator
from dataclasses import replace

from xhat.lens.checker.faults import TITLES
from xhat.lens.checker.verdict import FoundMistake, Row, Verdict

__all__ = ["joined"]


def joined(verdicts: list[Verdict]) -> Verdict:
    """Several cases as one verdict: what is right in them in one row, and the rest with the names of the cases."""
    rows = [row for name in _outputs(verdicts) for row in _rows_of(name, verdicts)]
    texts = dict.fromkeys(text for v in verdicts for text in v.unnamed)
    mistakes = _shared(verdicts)
    return Verdict(
        f"{len(verdicts)} cases",
        rows=tuple(rows),
        mistakes=tuple(mistakes),
        unnamed=tuple(
            f"{', '.join(v.subject for v in verdicts if text in v.unnamed)}: {text}" for text in texts
        ),
        conventions={v.subject: v.conventions["x"] for v in verdicts if "x" in v.conventions},
        notes=tuple(dict.fromkeys(note for v in verdicts for note in v.notes)),
        not_judged=tuple(f"{v.subject}: {text}" for v in verdicts for text in v.not_judged),
        comparisons=tuple(c for v in verdicts for c in v.comparisons),
    )


def _shared(verdicts: list[Verdict]) -> list[FoundMistake]:
    """The mistakes of all cases; those of one output are one, with the names that they share."""
    found: list[FoundMistake] = []
    for verdict in verdicts:
        for made in verdict.mistakes:
            made = replace(made, outputs=tuple(f"{o} of {verdict.subject}" for o in made.outputs))
            known = next((m for m in found if set(m.names) & set(made.names)), None)
            if known is None:
                found.append(made)
                continue
            names = tuple(name for name in known.names if name in made.names)
            line, remedy = TITLES[names[0].split(" + ")[0]]
            found[found.index(known)] = FoundMistake(names, known.outputs + made.outputs, line, remedy)
    return found


def _outputs(verdicts: list[Verdict]) -> list[str]:
    return list(dict.fromkeys(row.output for v in verdicts for row in v.rows))


def _rows_of(output: str, verdicts: list[Verdict]) -> Iterator[Row]:
    """One row for all cases in which an output is right, then one for each other case."""
    found = [(v.subject, row) for v in verdicts for row in v.rows if row.output == output]
    right = [(case, row) for case, row in found if row.right]
    if right:
        case, worst = max(right, key=lambda one: one[1].error or 0.0)
        where = f"{len(right)} cases" if len(right) > 1 else case
        yield replace(worst, why=f"{where}; {worst.why}".rstrip("; "))
    for case, row in found:
        if not row.right:
            yield replace(row, output=f"{output} of {case}")
