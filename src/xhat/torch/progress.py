"""A progress bar on stderr. What is done meanwhile must never be decided here."""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any

__all__ = ["with_progress"]

SECONDS_BETWEEN_LINES = 5


def with_progress(batches: Iterable[Any], what: str, show: bool) -> Iterable[Any]:
    """The batches, with a progress bar on stderr; in a file, or without rich, with a line from time to time."""
    if not show:
        return batches
    try:
        from rich.console import Console
        from rich.progress import track
    except ImportError:
        return _with_lines(batches, what)
    console = Console(stderr=True)
    if not (console.is_terminal or console.is_jupyter):  # rich would leave an empty line there
        return _with_lines(batches, what)
    return track(batches, description=what, console=console, transient=True)


def _with_lines(batches: Iterable[Any], what: str) -> Iterator[Any]:
    of_all = f" of {len(batches)}" if isinstance(batches, Sized) else ""
    last, k = time.monotonic(), 0
    for k, batch in enumerate(batches, start=1):
        yield batch
        if time.monotonic() - last > SECONDS_BETWEEN_LINES:
            print(f"{what}: {k}{of_all} batches", file=sys.stderr)
            last = time.monotonic()
    print(f"{what}: {k}{of_all} batches", file=sys.stderr)
