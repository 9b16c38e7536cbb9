"""One self-contained HTML page about verdicts: yours, exact and difference of every output, and of the paths of dx.

Nothing is computed or judged here (see `views`). The page makes no network requests, which its content security policy
enforces, and every name and sentence is inserted as text (autoescape).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from xhat.lens.checker.verdict import Verdict, place
from xhat.templates import filled

__all__ = ["render", "write_page"]

_CASES = 6  # comparisons that are shown in full, the wrong ones first
_TONES = {0: "right", 1: "wrong", 2: "open"}


def write_page(verdicts: Sequence[Verdict], path: str | Path) -> Path:
    """Write the page about these verdicts, and return its path. Raises ArgumentError if Jinja2 is not installed."""
    where = Path(path)
    where.write_text(render(verdicts), encoding="utf-8")
    return where


def render(verdicts: Sequence[Verdict]) -> str:
    """The page as text that UTF-8 can encode."""
    title = verdicts[0].subject if len(verdicts) == 1 else f"{len(verdicts)} verdicts"
    parts = [_part(verdict) for verdict in verdicts]
    return filled(
        "xhat.lens.checker.page", "check", "check", "lens", {"number": _number}, title=title, parts=parts
    )


def _part(verdict: Verdict) -> dict[str, Any]:
    """What the page shows of one verdict: the comparisons with wrong results first."""
    ordered = sorted(verdict.comparisons, key=lambda c: all(view["ratio"] <= 1 for view in c["views"]))
    return {
        "verdict": verdict,
        "tone": _TONES[verdict.status],
        "places": {m.line: place(m.line) for m in verdict.mistakes},
        "cases": ordered[:_CASES],
        "unlisted": max(0, len(ordered) - _CASES),
    }


def _number(value: Any, digits: int = 4) -> str:
    """A number in at most so many digits, with a minus sign."""
    return f"{float(value):.{digits}g}".replace("-", "−").replace("inf", "∞").replace("nan", "NaN")
