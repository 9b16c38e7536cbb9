"""One self-contained HTML page about a verdict: yours, exact and difference of every output, and of the paths of dx.

Nothing is computed or judged here (see `views`). The page makes no network requests, which its content security policy
enforces, and every name and sentence is inserted as text (autoescape).
"""

from importlib.resources import files
from typing import Any

from xhat.errors import ArgumentError
from xhat.lens.checker.verdict import Verdict, place
from xhat.lens.checker.views import views

__all__ = ["render"]

_CASES = 6  # comparisons that are shown in full, the wrong ones first
_TONES = {0: "right", 1: "wrong", 2: "open"}


def render(verdict: Verdict) -> str:
    """The page as text that UTF-8 can encode. Raises ArgumentError if Jinja2 is not installed."""
    try:
        from jinja2 import Environment, StrictUndefined
    except ModuleNotFoundError:
        raise ArgumentError(
            "check: jinja2 is missing, install it with pip install 'xhat[lens]', or omit the page."
        ) from None

    def part(package: str, name: str) -> str:
        return (files(package) / "web" / name).read_text(encoding="utf-8")

    jinja = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    jinja.filters["number"] = _number
    template = jinja.from_string(part("xhat.lens.checker", "check.html"))
    look = {
        "style": part("xhat", "page.css") + part("xhat.lens.checker", "check.css"),
        "theme": part("xhat", "theme.js"),
    }
    ordered = sorted(verdict.comparisons, key=lambda c: all(c.ratio(o) <= 1 for o in c.yours))
    shown = [
        {"title": c.title, "shape": " × ".join(map(str, c.probe.x.shape)), "views": views(c)} for c in ordered
    ]
    text = template.render(
        **look,
        verdict=verdict,
        tone=_TONES[verdict.status],
        places={m.line: place(m.line) for m in verdict.mistakes},
        cases=shown[:_CASES],
        unlisted=max(0, len(shown) - _CASES),
    )
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _number(value: Any, digits: int = 4) -> str:
    """A number in at most so many digits, with a minus sign."""
    return f"{float(value):.{digits}g}".replace("-", "−").replace("inf", "∞").replace("nan", "NaN")
