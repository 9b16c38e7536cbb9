"""The batches: consumed once, and read again for the passes that need what all of them have shown.

A list or tuple is read again where it is. Batches of anything else (a generator, a DataLoader, which may shuffle) are
written to a temporary folder, one file each, so that only one of them is in memory; those that cannot be pickled are
held in memory. The model gets copies of the tensors, so that it cannot change the caller's.
"""

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from xhat.errors import ArgumentError
from xhat.torch.trees import mapped

__all__ = ["Batches", "copied"]


def copied(batch: Any) -> Any:
    """The batch with clones of its tensors."""
    return mapped(lambda t: t.detach().clone(), batch)


class Batches:
    """Iterated over for the first time, the iterable's; after that, the same ones again."""

    def __init__(self, iterable: Iterable[Any]) -> None:
        if not isinstance(iterable, Iterable) and not hasattr(iterable, "__getitem__"):
            raise ArgumentError(
                f"diagnose: batches is {type(iterable).__name__}, expected an iterable of batches, such as a "
                "DataLoader."
            )
        self._iterable = iterable
        self._again: list[Any] | None = list(iterable) if type(iterable) in (list, tuple) else None
        self._stored: list[Any] = []
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    def first(self) -> Iterator[Any]:
        """The batches of the iterable."""
        for batch in self._iterable:
            if self._again is None:
                self._stored.append(self._store(batch))
            yield batch

    def __len__(self) -> int:
        return len(self._stored if self._again is None else self._again)

    def __iter__(self) -> Iterator[Any]:
        if self._again is not None:
            yield from self._again
        for stored in self._stored:
            yield torch.load(stored, weights_only=False) if isinstance(stored, _File) else stored

    def _store(self, batch: Any) -> Any:
        if self._folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="xhat-doctor-")
        file = _File(self._folder.name) / f"{len(self._stored)}.pt"
        try:
            torch.save(copied(batch), file)  # a copy: a view would be saved with all that it is a view of
        except Exception:
            file.unlink(missing_ok=True)
            return batch
        return file

    def close(self) -> None:
        """Deletes the temporary folder."""
        if self._folder is not None:
            self._folder.cleanup()


class _File(type(Path())):  # type: ignore[misc]
    """A stored batch: no batch of the caller's is of this class."""
