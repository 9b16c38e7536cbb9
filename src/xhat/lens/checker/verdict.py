"""The verdict of the checker as data, and its presentation in terminals, as JSON and in pytest.

Nothing is computed here. A verdict is true if the code is right. Its repr fits into the line that pytest prints for
a failed assertion; ``print(verdict)`` shows everything.
"""

import json
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["SECTIONS", "FoundMistake", "Row", "Verdict"]

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
    """One output: whether it is right, its largest error relative to its terms, and the explanation."""

    output: str
    right: bool
    error: float | None
    why: str


@dataclass(frozen=True)
class Verdict:
    """The judgement of a forward, a backward, or both. `right` is None if they could not be judged (`problem`)."""

    right: bool | None
    subject: str
    rows: tuple[Row, ...] = ()
    mistakes: tuple[FoundMistake, ...] = ()
    unnamed: tuple[str, ...] = ()
    conventions: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    tolerance: float | None = None
    problem: str | None = None

    def __bool__(self) -> bool:
        return self.right is True

    @property
    def status(self) -> int:
        """The exit status: 0 right, 1 wrong, 2 could not be judged."""
        return 2 if self.right is None else int(not self.right)

    @property
    def names(self) -> frozenset[str]:
        """The names of all mistakes found, including all names of equivalent ones."""
        return frozenset(name for finding in self.mistakes for name in finding.names)

    @property
    def headline(self) -> str:
        """The verdict in one sentence."""
        if self.right is None:
            return f"{self.subject}: could not be judged: {self.problem}"
        if self.right:
            return f"{self.subject}: right ({', '.join(row.output for row in self.rows)})."
        parts = [f"{finding} [{', '.join(finding.outputs)}]" for finding in self.mistakes] + list(
            self.unnamed
        )
        return f"{self.subject}: wrong: {'; '.join(parts)}."

    def __repr__(self) -> str:
        text = " ".join(self.headline.split())
        return f"<{text}>" if len(text) <= _SHOWN else f"<{text[: _SHOWN - 24]}… print it for the rest>"

    def __str__(self) -> str:
        lines = [self.headline]
        width = max((len(row.output) for row in self.rows), default=0)
        for row in self.rows:
            error = "" if row.error is None else f"error {row.error:.1e}"
            lines.append(
                f"  {row.output:{width}}  {'right' if row.right else 'WRONG'}  {error:13}  {row.why}".rstrip()
            )
        for finding in self.mistakes:
            lines += ["", str(finding), f"  {finding.remedy}", f"  read: {place(finding.line)}"]
        lines += ["", *self.unnamed] if self.unnamed else []
        if self.conventions:
            found = ", ".join(f"{name}: {value}" for name, value in self.conventions.items())
            lines += ["", f"Conventions found: {found}."]
        return "\n".join(lines + list(self.notes))

    def as_dict(self) -> dict[str, Any]:
        """Everything, in types of JSON."""
        return {"status": self.status, "headline": self.headline, **asdict(self)}

    def as_json(self) -> str:
        return json.dumps(self.as_dict(), indent=2, ensure_ascii=False, default=str)

    def show(self) -> None:
        """Print the verdict as a table in the terminal. Needs rich (the extra `lens`); without it, plain text."""
        try:
            from rich.console import Console
            from rich.table import Table
            from rich.text import Text
        except ModuleNotFoundError:
            print(self)
            return
        console = Console()
        colour = {0: "green", 1: "red", 2: "yellow"}[self.status]
        console.print(Text(self.headline, style=f"bold {colour}"))
        if self.rows:
            table = Table("output", "", "error", "what explains it", pad_edge=False)
            for row in self.rows:
                mark = Text("right", style="green") if row.right else Text("wrong", style="red")
                table.add_row(
                    row.output, mark, "" if row.error is None else f"{row.error:.1e}", Text(row.why)
                )
            console.print(table)
        for finding in self.mistakes:
            console.print(Text(f"• {finding}", style="bold"))
            console.print(Text(f"  {finding.remedy}\n  read: {place(finding.line)}"))
        for line in self.unnamed:
            console.print(Text(f"• {line}", style="yellow"))
        for name, value in self.conventions.items():
            console.print(Text(f"  {name}: {value}", style="dim"))
        for note in self.notes:
            console.print(Text(f"  {note}", style="dim"))


def place(line: str) -> str:
    """Where to read about a mistake: the section of the source derivation, and the name of its display."""
    return f"derivation, {SECTIONS[line]!r}, display {line}"
