"""Files for graders: a CSV with a row for each submission and output, and results in Gradescope's format.

The format is that of https://gradescope-autograders.readthedocs.io/en/latest/specs/.
"""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from xhat.lens.checker.files.verdicts import Verdicts, combined
from xhat.lens.checker.verdict import Verdict

__all__ = ["Graded", "causes", "with_missing", "write_csv", "write_gradescope"]

COLUMNS = (
    "submission",
    "file",
    "functions",
    "output",
    "answer",
    "error",
    "mistake",
    "line",
    "formula",
    "reason",
)
_ANSWERS = {True: "right", False: "wrong", None: "not judged"}


@dataclass(frozen=True)
class Graded:
    """A submission and the verdicts of its files, as `check_files` returns it.

    Attributes
    ----------
    name : str
        The name of the submission.
    files : tuple of Verdicts
        The verdicts of its files.
    problem : str or None
        Why there are none.
    """

    name: str
    files: tuple[Verdicts, ...]
    problem: str | None = None

    @property
    def status(self) -> int:
        """The exit status: 0 right, 1 something is wrong, 2 something was not judged and nothing is wrong."""
        return combined([file.status for file in self.files])

    @property
    def reason(self) -> str | None:
        """Why nothing was judged, if nothing was."""
        return self.problem or next(
            (file.problem for file in self.files if file.problem and not len(file)), None
        )


def with_missing(one: Graded, expected: Sequence[str]) -> Graded:
    """The submission with a verdict that is not judged for each function that is expected and was not found."""
    subjects = [verdict.subject for file in one.files for verdict in file]
    found = {name.partition(".")[0] for subject in subjects for name in subject.split(" and ")}
    missing = [Verdict(name, problem=f"{one.name} has no {name}.") for name in expected if name not in found]
    if not missing:
        return one
    file = one.files[0] if one.files else Verdicts(one.name)
    return replace(one, files=(replace(file, verdicts=(*file.verdicts, *missing)), *one.files[1:]))


def write_csv(path: Path, graded: Sequence[Graded]) -> None:
    """Write a row for each submission and output; a submission that could not be judged has one row with its reason."""
    with path.open(
        "w", newline="", encoding="utf-8-sig"
    ) as file:  # with a mark by which spreadsheets know UTF-8
        table = csv.writer(file)
        table.writerow(COLUMNS)
        for one in graded:
            for row in _rows(one):
                table.writerow([_cell(row.get(column, "")) for column in COLUMNS])


def _cell(value: Any) -> str:
    """A text that no spreadsheet takes for a formula: names and messages are the students'."""
    text = str(value)
    return (
        f"'{text}" if text.startswith(("=", "+", "-", "@", "\t")) and not isinstance(value, float) else text
    )


def _rows(one: Graded) -> Iterator[dict[str, Any]]:
    if not one.files:
        yield {"submission": one.name, "answer": "not judged", "reason": one.problem}
    for file in one.files:
        about = {"submission": one.name, "file": file.path}
        if not file.verdicts:
            yield about | {"answer": "not judged", "reason": file.problem}
        for verdict in file:
            yield from (about | {"functions": verdict.subject} | row for row in _outputs(verdict))


def _outputs(verdict: Verdict) -> Iterator[dict[str, Any]]:
    if not verdict.rows:
        yield {"answer": "not judged", "reason": verdict.problem}
    for row in verdict.rows:
        named = [str(mistake) for mistake in verdict.mistakes if row.output in mistake.outputs]
        formula = next((f.yours for f in verdict.formulas if f.output == row.output), "")
        lines = "; ".join(f"{line.function}, line {line.line}" for line in verdict.wrong_lines)
        yield {
            "output": row.output,
            "answer": _ANSWERS[row.right],
            "error": "" if row.error is None else float(f"{row.error:.2g}"),
            "mistake": "; ".join(named) or (row.why if row.right is False else ""),
            "line": lines if row.right is False else "",
            "formula": formula if row.right is False else "",
            "reason": row.why if row.right is None else "",
        }


def write_gradescope(path: Path, graded: Sequence[Graded], points: float | None) -> list[Path]:
    """Write the results of one submission to a file, or those of many to a folder, a file for each."""
    if len(graded) == 1:
        path.write_text(
            json.dumps(_results(graded[0], points), indent=2, ensure_ascii=False), encoding="utf-8"
        )
        return [path]
    path.mkdir(parents=True, exist_ok=True)
    written = []
    for one in graded:
        written.append(path / f"{one.name}.json")
        written[-1].write_text(
            json.dumps(_results(one, points), indent=2, ensure_ascii=False), encoding="utf-8"
        )
    return written


def _results(one: Graded, points: float | None) -> dict[str, Any]:
    """A test for each output. Together they are worth `points`, or one point each."""
    rows = list(_rows(one))
    worth = 1.0 if points is None else points / len(rows)
    tests = []
    for row in rows:
        passed = row["answer"] == "right"
        subject = " of ".join(str(row[key]) for key in ("output", "functions") if row.get(key))
        why = [
            row["answer"],
            *(str(row[key]) for key in ("mistake", "line", "formula", "reason") if row.get(key)),
        ]
        tests.append(
            {
                "name": subject or str(row.get("file", one.name)),
                "score": worth if passed else 0.0,
                "max_score": worth,
                "status": "passed" if passed else "failed",
                "output": "\n".join(why),
                "output_format": "text",
            }
        )
    return {"output": "\n".join(str(file) for file in one.files) or str(one.problem), "tests": tests}


def causes(graded: Sequence[Graded]) -> list[tuple[str, list[str]]]:
    """Each mistake, and each reason why something was not judged, with the submissions that have it; most first."""
    found: dict[str, list[str]] = {}
    for one in graded:
        own = dict.fromkeys(cause for file in one.files for cause in _causes(file))
        for cause in own or ([f"not judged: {one.problem}"] if one.problem else []):
            found.setdefault(cause, []).append(one.name)
    return sorted(found.items(), key=lambda item: -len(item[1]))


def _causes(file: Verdicts) -> Iterator[str]:
    if file.problem:
        yield f"not judged: {_general(file.problem, file)}"
    for verdict in file:
        yield from (str(mistake) for mistake in verdict.mistakes)
        if verdict.problem:
            yield f"not judged: {_general(verdict.problem, file)}"
        yield from dict.fromkeys(f"not judged: {row.why}" for row in verdict.rows if row.right is None)
        named = {output for mistake in verdict.mistakes for output in mistake.outputs}
        unnamed = [row.output for row in verdict.rows if row.right is False and row.output not in named]
        if unnamed:
            yield f"wrong: {', '.join(unnamed)}"


def _general(problem: str, file: Verdicts) -> str:
    return problem.replace(file.path, "the file")
