"""The source derivation, `source.md`, kept byte for byte, and its displayed equations in order.

Nothing is corrected or judged here.
"""

import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

__all__ = ["Display", "declared_loss", "declared_size", "displays", "text"]

# One name for each display of the source, in order.
_IDS = (
    "mean",
    "variance",
    "normalization",
    "scale-and-shift",
    "output-gradient",
    "gamma-gradient",
    "beta-gradient",
    "path-1",
    "path-2",
    "variance-by-input",
    "path-2-product",
    "path-3",
    "zero-path",
    "variance-by-mean",
    "mean-by-input",
    "path-3-product",
    "input-gradient",
)


@dataclass(frozen=True)
class Display:
    """A displayed equation: its name, the sentence before it, and its LaTeX, unchanged."""

    id: str
    words: str
    latex: str


@cache
def text() -> str:
    """The whole source document."""
    return files(__package__).joinpath("source.md").read_text(encoding="utf-8")


@cache
def displays() -> tuple[Display, ...]:
    """Every displayed equation of the source, in order."""
    pieces = text().split("$$")
    introductions, equations = pieces[:-1:2], pieces[1::2]
    return tuple(
        Display(name, words.strip().splitlines()[-1], latex)
        for name, words, latex in zip(_IDS, introductions, equations, strict=True)
    )


def declared_loss() -> str:
    """The letter of the loss in the prose of the source."""
    return _declared(r"Let (\w) be the loss function")


def declared_size() -> str:
    """The letter of the batch size in the prose of the source."""
    return _declared(r"\\dots, x_(\w)\\}")


def _declared(pattern: str) -> str:
    found = re.search(pattern, text())
    assert found is not None, pattern
    return found[1]
