"""A mistake in one of the programs, and what is expected of the checker. The table is in `planted`."""

from pathlib import Path
from typing import NamedTuple

PROGRAMS = Path(__file__).parent / "programs"


class Planted(NamedTuple):
    """A mistake: the program, the edits, and the expectations."""

    key: str
    program: str
    edits: tuple[tuple[str, str], ...]
    outputs: str
    name: str = ""  # of the catalogue; several are separated by " + "
    formulas: dict[str, str] = {}  # noqa: RUF012 - never changed
    line: str = ""  # a part of the line, if it is not the first one that is edited

    @property
    def layout(self) -> str | None:
        return "NCHW" if self.program in ("spatial", "axes") else None

    def source(self) -> str:
        """The program with the mistake."""
        text = (PROGRAMS / f"{self.program}.py").read_text(encoding="utf-8")
        for old, new in self.edits:
            assert text.count(old) == 1, (self.key, old, text.count(old))
            text = text.replace(old, new)
        return text

    def lines(self) -> list[int]:
        """The numbers of the lines that are wrong."""
        text = self.source().splitlines()
        if self.line:
            return [k for k, line in enumerate(text, 1) if self.line in line]
        before = set((PROGRAMS / f"{self.program}.py").read_text(encoding="utf-8").splitlines())
        return [k for k, line in enumerate(text, 1) if line not in before]


def mistake(
    key: str, program: str, edits: str, outputs: str, name: str = "", line: str = "", **formulas: str
) -> Planted:
    """`edits` is one edit a line, old -> new; @ stands for a new line within one."""
    rows = (edit.split("  ->  ") for edit in edits.split("\n"))
    pairs = tuple((old.replace("@", "\n"), new.replace("@", "\n")) for old, new in rows)
    return Planted(key, program, pairs, outputs, name, formulas, line)
