"""The verdict of the checker as data, and its presentation in terminals, as JSON and in pytest.

Nothing is computed here. Every output is right, wrong or not judged, and a verdict is true only if all that was asked
for was judged and is right. Its repr fits into the line that pytest prints for
a failed assertion; ``print(verdict)`` shows everything.
"""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from xhat.errors import ArgumentError
from xhat.notebook import framed

__all__ = ["SECTIONS", "FormulaRead", "FoundMistake", "Row", "Verdict", "WrongLine"]

_PATH_2, _PATH_3 = "Path 2: Gradient with respect to Variance σ^2", "Path 3: Gradient with respect to Mean μ"
# Display of the source derivation -> the heading above it.
SECTIONS = {
    "mean": "1. Mean Calculation",
    "variance": "2. Variance Calculation",
    "normalization": "3. Normalization: Each input is normalized as follows",
    "scale-and-shift": "4. Scale and Shift: The final output is computed as",
    "gamma-gradient": "2. Gradient with respect to Scale Parameter γ",
    "beta-gradient": "3. Gradient with respect to Shift Parameter β",
    "path-1": r"Path 1: Gradient with respect to Normalized Input \hat{x}_i",
    "path-2": _PATH_2,
    "variance-by-input": _PATH_2,
    "path-2-product": _PATH_2,
    "path-3": _PATH_3,
    "mean-by-input": _PATH_3,
    "path-3-product": _PATH_3,
    "input-gradient": "Finally, the gradient with respect to the input is given by",
}

_SHOWN = 230  # pytest cuts a repr of more than 240 characters in the middle


@dataclass(frozen=True)
class FoundMistake:
    """A mistake that explains the outputs. Mistakes with the same numbers on every probe are one, with several names.

    `line` is the display of the derivation to read, `remedy` the correct formula.
    """

    names: tuple[str, ...]
    outputs: tuple[str, ...]
    line: str
    remedy: str

    def __str__(self) -> str:
        same = " (the same numbers; the code tells which)" if len(self.names) > 1 else ""
        return " or ".join(self.names) + same


@dataclass(frozen=True)
class Row:
    """One output: right, wrong, or not judged (None); its largest error relative to its terms; and the reason."""

    output: str
    right: bool | None
    error: float | None
    why: str

    @property
    def answer(self) -> str:
        return {True: "right", False: "WRONG", None: "not judged"}[self.right]


@dataclass(frozen=True)
class WrongLine:
    """The first line of a function whose value is no step of the exact computation.

    `name` is the variable that the line sets, `found` what its value is, `expected` what it should be.
    """

    function: str
    line: int
    source: str
    name: str
    found: str
    expected: str

    def __str__(self) -> str:
        return (
            f"First wrong line: {self.function}, line {self.line}: {self.source.strip()}\n"
            f"  {self.name} is {self.found}; expected {self.expected}."
        )


@dataclass(frozen=True)
class FormulaRead:
    """The formula that the numbers of an output obey, the exact one, and the factors that differ."""

    output: str
    yours: str
    exact: str
    differs: tuple[str, ...]

    def __str__(self) -> str:
        differing = f"\n  differs in: {', '.join(self.differs)}" if self.differs else ""
        return (
            f"{self.output}, read from the numbers:\n  yours: {self.yours}\n  exact: {self.exact}{differing}"
        )


@dataclass(frozen=True)
class Verdict:
    """The judgement of a forward, a backward, or both.

    It is true if everything that was asked for was judged and is right. Print it for all that was found.

    Attributes
    ----------
    subject : str
        What was judged.
    rows : tuple
        One row for each output: right, wrong, or not judged, with its largest error and the reason.
    mistakes : tuple
        The mistakes that explain wrong outputs, with names, outputs and remedy.
    unnamed : tuple of str
        Mistakes without a name.
    conventions : dict of str to str
        The conventions that were found, such as the divisor of the variance.
    notes : tuple of str
        Remarks.
    tolerance : float or None
        The relative error that counts as rounding.
    problem : str or None
        Why nothing could be judged.
    not_judged : tuple of str
        What is no output and was not judged: other functions of the file, evaluation of code without a mode.
    incomplete : bool
        Whether something of it was asked for.
    wrong_lines : tuple
        The first wrong line of each function.
    formulas : tuple
        The formulas that wrong outputs obey.
    """

    subject: str
    rows: tuple[Row, ...] = ()
    mistakes: tuple[FoundMistake, ...] = ()
    unnamed: tuple[str, ...] = ()
    conventions: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    tolerance: float | None = None
    problem: str | None = None
    not_judged: tuple[str, ...] = ()
    incomplete: bool = False
    wrong_lines: tuple[WrongLine, ...] = ()
    formulas: tuple[FormulaRead, ...] = ()
    comparisons: tuple[Any, ...] = field(default=(), repr=False, compare=False)  # of `views`, for the page

    @property
    def right(self) -> bool | None:
        """False if anything is wrong; else None if anything that was asked for was not judged; else True."""
        if self.mistakes or self.unnamed or any(row.right is False for row in self.rows):
            return False
        unanswered = self.problem or self.incomplete or any(row.right is None for row in self.rows)
        return None if unanswered or not self.rows else True

    def __bool__(self) -> bool:
        return self.right is True

    @property
    def status(self) -> int:
        """The exit status: 0 right, 1 wrong, 2 something that was asked for was not judged, and nothing is wrong."""
        return {True: 0, False: 1, None: 2}[self.right]

    @property
    def names(self) -> frozenset[str]:
        """The names of all mistakes found, including all names of equivalent ones."""
        return frozenset(name for finding in self.mistakes for name in finding.names)

    @property
    def headline(self) -> str:
        """The verdict in one sentence: what is wrong, what is right, and what was not judged."""
        if self.problem is not None or not self.rows:
            return f"{self.subject}: could not be judged: {self.problem or 'nothing was run.'}"
        right = ", ".join(row.output for row in self.rows if row.right)
        if self.right:
            return f"{self.subject}: right ({right})."
        if self.right is None:
            parts = [f"{right} right"] if right else []
        else:
            parts = [f"{finding} [{', '.join(finding.outputs)}]" for finding in self.mistakes]
            parts = [f"wrong: {'; '.join([*parts, *self.unnamed]) or self._wrong_outputs()}"]
        parts += self._unjudged() + (list(self.not_judged) if self.incomplete else [])
        return f"{self.subject}: {'; '.join(part.rstrip('.') for part in parts)}."

    def _wrong_outputs(self) -> str:
        return ", ".join(row.output for row in self.rows if row.right is False)

    def _unjudged(self) -> list[str]:
        """One part of the headline for each reason: dx, dgamma not judged: why."""
        reasons = dict.fromkeys(row.why for row in self.rows if row.right is None)
        return [
            f"{', '.join(r.output for r in self.rows if r.right is None and r.why == why)} not judged: {why}"
            for why in reasons
        ]

    def __repr__(self) -> str:
        text = " ".join(self.headline.split())
        return f"<{text}>" if len(text) <= _SHOWN else f"<{text[: _SHOWN - 24]}… print it for the rest>"

    def __str__(self) -> str:
        lines = [self.headline]
        width = max((len(row.output) for row in self.rows), default=0)
        answers = max((len(row.answer) for row in self.rows), default=0)
        for row in self.rows:
            error = "" if row.error is None else f"error {row.error:.1e}"
            lines.append(f"  {row.output:{width}}  {row.answer:{answers}}  {error:13}  {row.why}".rstrip())
        for finding in self.mistakes:
            lines += ["", str(finding), f"  {finding.remedy}", f"  read: {place(finding.line)}"]
        lines += ["", *self.unnamed] if self.unnamed else []
        for part in (*self.wrong_lines, *self.formulas):
            lines += ["", str(part)]
        if self.conventions:
            found = ", ".join(f"{name}: {value}" for name, value in self.conventions.items())
            lines += ["", f"Conventions found: {found}."]
        lines += [f"Not judged: {text}" for text in self.not_judged]
        return "\n".join(lines + list(self.notes))

    def as_dict(self) -> dict[str, Any]:
        """Return everything, in types of JSON."""
        fields = asdict(replace(self, comparisons=()))
        fields.pop("comparisons")
        return {"status": self.status, "headline": self.headline, "right": self.right, **fields}

    def as_json(self) -> str:
        """Return everything as JSON."""
        return json.dumps(self.as_dict(), indent=2, ensure_ascii=False, default=str)

    def to_html(self, path: str | Path = "check.html") -> Path:
        """Write a page that shows yours, exact and difference for every output, and return its path.

        The page is one file and makes no network requests. Needs Jinja2 (the extra ``lens``).

        Parameters
        ----------
        path : str or Path, default "check.html"
            The file.

        Returns
        -------
        Path
            The path of the file.
        """
        from xhat.lens.checker.page.render import write_page

        return write_page([self], path)

    def _repr_html_(self) -> str | None:
        """The page in a notebook; without Jinja2 None, for which a notebook prints the headline."""
        from xhat.lens.checker.page.render import render

        try:
            return framed(render([self]))
        except ArgumentError:
            return None

    def show(self) -> None:
        """Print the verdict as a table in the terminal. Needs rich (the extra ``lens``); without it, plain text."""
        try:
            from rich.console import Console
            from rich.text import Text
        except ModuleNotFoundError:
            print(self)
            return
        console = Console()
        colour = {0: "green", 1: "red", 2: "yellow"}[self.status]
        console.print(Text(self.headline, style=f"bold {colour}"))
        if self.rows:
            console.print(_table(self.rows))
        for finding in self.mistakes:
            console.print(Text(f"• {finding}", style="bold"))
            console.print(Text(f"  {finding.remedy}\n  read: {place(finding.line)}"))
        for line in self.unnamed:
            console.print(Text(f"• {line}", style="yellow"))
        for part in (*self.wrong_lines, *self.formulas):
            console.print(Text(str(part)))
        for name, value in self.conventions.items():
            console.print(Text(f"  {name}: {value}", style="dim"))
        for text in self.not_judged:
            console.print(Text(f"  Not judged: {text}", style="yellow" if self.incomplete else "dim"))
        for note in self.notes:
            console.print(Text(f"  {note}", style="dim"))


def _table(rows: tuple[Row, ...]) -> Any:
    """The rows as a table of rich."""
    from rich.table import Table
    from rich.text import Text

    colours = {True: "green", False: "red", None: "yellow"}
    table = Table("output", "", "error", "what explains it", pad_edge=False)
    for row in rows:
        mark = Text(row.answer.lower(), style=colours[row.right])
        table.add_row(row.output, mark, "" if row.error is None else f"{row.error:.1e}", Text(row.why))
    return table


def place(line: str) -> str:
    """Where to read about a mistake: the section of the source derivation, and the name of its display."""
    return f"derivation, {SECTIONS[line]!r}, display {line}"
