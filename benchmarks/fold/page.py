"""The page of results, docs/fold-results.md. Nothing is measured here."""

from typing import Any

__all__ = ["write"]


def write(rows: list[dict[str, Any]]) -> None:
    """Writes the page."""
