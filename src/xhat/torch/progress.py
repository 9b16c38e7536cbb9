"""Showing how far a loop is: with rich where that is installed, else in lines."""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import Any

__all__ = ["watched"]

SECONDS = 5  # between two lines


def watched(items: Iterable[Any], shown: bool) -> Iterable[Any]:
    """The same items, and a bar on stderr while they are taken."""
    if not shown:
        return items
    try:
        from rich.console import Console
        from rich.progress import track
    except ImportError:
        return _in_lines(items)
    return track(items, description="recalibrate", console=Console(stderr=True), transient=True)


def _in_lines(items: Iterable[Any]) -> Iterator[Any]:
    total = f" of {len(items)}" if isinstance(items, Sized) else ""
    last, k = time.monotonic(), 0
    for k, item in enumerate(items, start=1):
        yield item
        if time.monotonic() - last > SECONDS:
            print(f"recalibrate: {k}{total} batches", file=sys.stderr)
            last = time.monotonic()
    print(f"recalibrate: {k}{total} batches", file=sys.stderr)
