"""Which files are checked: those that were named, and in folders those whose text defines a batch norm.

Nothing is run. A submission is what one person handed in: a file, or a folder.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from xhat.errors import ArgumentError
from xhat.lens.checker.calling.adapter import Unjudged
from xhat.lens.checker.files.pairs import find_pairs
from xhat.lens.checker.files.syntax import described
from xhat.lens.checker.files.text import Code, read_code

__all__ = ["Submission", "submissions"]

_SUFFIXES = (".py", ".ipynb")
_WORDS = re.compile(r"norm|bn|gamma|def _?(forward|fwd|fprop)", re.IGNORECASE)
_LEFT_OUT = frozenset(("__pycache__", "node_modules", "site-packages", "venv", "env", "build", "dist"))


@dataclass
class Submission:
    """What one person handed in: the files to check, and the others with the reason why they are left out."""

    name: str
    files: list[Path] = field(default_factory=list)
    others: dict[Path, str] = field(default_factory=dict)

    @property
    def first(self) -> Path | None:
        """One of its files."""
        return next(iter((*self.files, *self.others)), None)


def submissions(paths: Sequence[Path], names: Sequence[str] = ()) -> list[Submission]:
    """The submissions in files and folders; `names` are functions that were asked for.

    A file is a submission. In a folder, every file and every folder is one, unless the folder is a package.
    Raises ArgumentError for a path that does not exist.
    """
    found: list[Submission] = []
    for path in paths:
        if not path.is_dir():
            found.append(Submission(path.stem, [path]))
            continue
        entries = sorted(entry for entry in _entries(path))
        if (path / "__init__.py").is_file():
            found.append(_in_folder(path, path.resolve().name, names))
        else:
            found += [_of(entry, names) for entry in entries]
    counts = Counter(submission.name for submission in found)
    for submission in found:  # files of one name are told apart by their folders
        if counts[submission.name] > 1 and submission.first is not None:
            submission.name = str(submission.first)
    if not paths:
        raise ArgumentError("check: got no file, expected a Python file, a notebook or a folder.")
    return found


def _entries(folder: Path) -> Iterator[Path]:
    """The Python files and the folders in a folder, without hidden ones, environments and links to folders."""
    try:
        entries = list(os.scandir(folder))
    except OSError as error:
        raise ArgumentError(f"check: {folder} can't be read ({error.strerror}).") from None
    for entry in entries:
        is_folder = entry.is_dir() and not entry.is_symlink() and entry.name not in _LEFT_OUT
        is_code = entry.name.endswith(_SUFFIXES) and not entry.is_dir()
        if not entry.name.startswith(".") and (is_folder or is_code):
            yield Path(entry.path)


def _of(entry: Path, names: Sequence[str]) -> Submission:
    if entry.is_dir():
        return _in_folder(entry, entry.name, names)
    return _sorted(Submission(entry.stem), entry, names)


def _in_folder(folder: Path, name: str, names: Sequence[str]) -> Submission:
    found = Submission(name)
    waiting = [folder]
    while waiting:
        for entry in sorted(_entries(waiting.pop(0))):
            if entry.is_dir():
                waiting.append(entry)
            else:
                _sorted(found, entry, names)
    return found


def _speaks_of(code: Code, names: Sequence[str]) -> bool:
    """Whether the text has a word of a batch norm at all, which is found sooner than its functions."""
    return bool(names) or any(_WORDS.search(part.source) for part in code.parts)


def _sorted(submission: Submission, file: Path, names: Sequence[str]) -> Submission:
    """Add a file to those that are checked if its text defines a batch norm, or what was asked for."""
    try:
        code = read_code(file)
        functions = described(code) if _speaks_of(code, names) else []
    except Unjudged as problem:
        submission.others[file] = str(problem)
        return submission
    asked = {name for name in names if name != "none"}
    if asked & {f.name for f in functions} if asked else find_pairs(functions, any_name=False).pairs:
        submission.files.append(file)
    else:
        submission.others[file] = f"{file.name} defines no batch norm by its names."
    return submission
