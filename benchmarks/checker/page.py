"""The page docs/checker-results.md: the goals, and a row for each right implementation and each planted mistake."""

from collections.abc import Iterable, Mapping, Sequence

from benchmarks.checker.measure import RightRow, WrongRow

__all__ = ["GOALS", "page", "scores"]

GOALS = {
    "right code passed": 100,
    "wrong code refused": 100,
    "mistakes named": 85,
    "first line right": 90,
    "formula right": 90,
}

INTRODUCTION = (
    "`python -m benchmarks.checker --write` writes this page. The right implementations are in "
    "`tests/lens/checker/corpus/right`. The mistakes are planted in the programs of "
    "`tests/lens/checker/corpus/wrong`; `planted.py` has what is expected of each, which was written down before "
    "the checker was run on it; names that the catalogue has gained since, and six that it had already, were added "
    "by their meaning. The catalogue and the search for the first wrong line were then improved on these mistakes, so "
    "the numbers are not those of unseen ones. A mistake is refused if every output that it makes wrong is called "
    "wrong. It is named if the names of the catalogue that were expected are among those found; a mistake for which no "
    "name was expected counts as not named. The line is right if the first line shown is the one that was changed "
    "(of several mistakes the first one), and no other line is shown. The formula is right if that of every wrong "
    "output is the one worked out by hand; mistakes without a plain formula are left out."
)


def scores(rights: Sequence[RightRow], wrongs: Sequence[WrongRow]) -> dict[str, tuple[int, int]]:
    """For each goal how many of how many."""
    with_formula = [row for row in wrongs if row.formula is not None]
    return {
        "right code passed": (sum(row.passed for row in rights), len(rights)),
        "wrong code refused": (sum(row.refused for row in wrongs), len(wrongs)),
        "mistakes named": (sum(row.named for row in wrongs), len(wrongs)),
        "first line right": (sum(row.line for row in wrongs), len(wrongs)),
        "formula right": (sum(bool(row.formula) for row in with_formula), len(with_formula)),
    }


def page(machine: Mapping[str, str], rights: Sequence[RightRow], wrongs: Sequence[WrongRow]) -> str:
    """The whole page."""
    table = (
        [name, f"{a} of {b}", f"{100 * a / b:.0f} %" if b else "", f"{GOALS[name]} %"]
        for name, (a, b) in scores(rights, wrongs).items()
    )
    seconds = sorted(row.seconds for row in (*rights, *wrongs))
    parts = [
        "# What the checker finds",
        INTRODUCTION,
        _table(["", "", "", "goal"], table),
        "## Planted mistakes",
        _table(["program", "mistake", "wrong", "refused", "named", "line", "formula"], map(_wrong, wrongs)),
        "## Right implementations",
        _table(["implementation", "passed"], ([row.name, _mark(row.passed)] for row in rights)),
        "## Time",
        f"The median is {seconds[len(seconds) // 2]:.1f} s a check, the longest {seconds[-1]:.1f} s, in one process.",
        "## Machine",
        _table(["", ""], ([key, value] for key, value in machine.items())),
    ]
    return "\n\n".join(parts) + "\n"


def _wrong(row: WrongRow) -> list[str]:
    p = row.planted
    formula = "" if row.formula is None else _mark(row.formula)
    name = p.key.replace("_", " ")
    return [
        p.program,
        name,
        p.outputs.replace(" ", ", "),
        *map(_mark, (row.refused, row.named, row.line)),
        formula,
    ]


def _mark(good: bool) -> str:
    return "yes" if good else "**no**"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
