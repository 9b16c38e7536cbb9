"""Rows of measurements, the races that they make up, and the files that hold them.

A results file is a CSV whose first lines, `# key: value`, describe machine, versions and commit. Nothing is measured
here.
"""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

__all__ = ["RESULTS_FOLDER", "ROOT", "Race", "Row", "find", "races", "read", "write"]

ROOT = Path(__file__).resolve().parents[2]
RESULTS_FOLDER = ROOT / "benchmarks" / "results"


class Row(NamedTuple):
    """One contestant in one setting: microseconds (MB, if memory is measured) and the worst relative error (L2).

    A field that a benchmark does not use keeps its default, and its results file has no such column.
    """

    case: str
    what: str
    contestant: str
    nbytes: int
    median: float
    p20: float
    p80: float
    error: float = 0.0
    layout: str = ""
    dtype: str = ""
    variant: str = ""
    memory: str = ""
    threads: int = 0
    ranks: int = 0
    collectives: int = 0


SETTING = ("case", "layout", "dtype", "variant", "what", "memory", "ranks")


class Race(NamedTuple):
    """All contestants in one setting: the fields of a row that they share, and their rows by name."""

    case: str
    layout: str
    dtype: str
    variant: str
    what: str
    memory: str
    ranks: int
    rows: dict[str, Row]

    @property
    def nbytes(self) -> int:
        """The bytes of the first contestant's row."""
        return next(iter(self.rows.values())).nbytes

    @property
    def label(self) -> str:
        """Case, layout and dtype, where memory came from, and the number of ranks."""
        words = f"{self.case} {self.layout} {self.dtype}".strip()
        return (
            words
            + (f", {self.memory} memory" if self.memory else "")
            + (f", {self.ranks} ranks" if self.ranks else "")
        )

    def ratio(self, name: str, other: str) -> float:
        """The median of one contestant over that of another."""
        return self.rows[name].median / self.rows[other].median


def races(rows: Iterable[Row]) -> list[Race]:
    """The rows gathered by setting, in their order."""
    found: dict[tuple[object, ...], Race] = {}
    for row in rows:
        key = tuple(getattr(row, name) for name in SETTING)
        found.setdefault(key, Race(*key, {})).rows[row.contestant] = row
    return list(found.values())


def find(races: Iterable[Race], **fields: object) -> Race | None:
    """The first race with these values, or None."""
    return next((race for race in races if all(getattr(race, k) == v for k, v in fields.items())), None)


def write(path: Path, machine: dict[str, str], rows: Sequence[Any]) -> None:
    """The results file of named tuples; numbers keep four digits, which is more than is reproducible."""
    fields, defaults = rows[0]._fields, rows[0]._field_defaults
    used = [name for name in fields if any(getattr(r, name) != defaults.get(name) for r in rows)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        file.writelines(f"# {key}: {value}\n" for key, value in machine.items())
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(used)
        for row in rows:
            values = (getattr(row, name) for name in used)
            writer.writerow([f"{v:.4g}" if isinstance(v, float) else v for v in values])


def read(path: Path, kind: type[Any] = Row) -> tuple[dict[str, str], list[Any]]:
    """What `write` wrote: the machine, and the rows of this kind."""
    lines = path.read_text().splitlines()
    described = [line[2:].split(": ", 1) for line in lines if line.startswith("# ")]
    table = csv.DictReader(line for line in lines if not line.startswith("# "))
    kinds = get_type_hints(kind)
    rows = [kind(**{name: kinds[name](value) for name, value in line.items()}) for line in table]
    return dict(described), rows
