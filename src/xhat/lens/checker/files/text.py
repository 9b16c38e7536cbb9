"""The text of a Python file or a notebook, mended where a few letters keep it from being Python 3.

Nothing is imported or run. What was mended is said in notes; line numbers stay as they are.
"""

import ast
import io
import json
import re
import stat
import tokenize
import warnings
from dataclasses import dataclass, field
from pathlib import Path

from xhat.lens.checker.calling.adapter import Unjudged

__all__ = ["Code", "Part", "blocks", "read_code"]

_LARGEST = 64 << 20  # bytes of a notebook with pictures
# Spaces that editors and web pages leave in code, and that Python refuses.
_SPACES = {"\u3000": "an ideographic space", "\u00a0": "a no-break space", "\u200b": "a zero-width space"}
_SPACES |= {"\u2028": "a line separator", "\ufeff": "a byte order mark"}
_PRINT = re.compile(
    r"^(\s*(?:(?:if|for|while|else|elif|try)\b[^'\"]*:\s*)?)print(?:[ \t]+(?![(=.])([^#;]*)|[ \t]*)(;.*|#.*)?$"
)
_EXCEPT = re.compile(r"^(\s*except\s+[\w.]+|\s*except\s*\([^)]*\))\s*,\s*(\w+)\s*:")
_JOINED = 12  # pieces of a text that are tried as one block
_ITER = re.compile(r"\.iter(items|keys|values)\(\)")


@dataclass(frozen=True)
class Part:
    """A piece of source with a name for messages: the file itself, or one cell of a notebook."""

    name: str
    source: str


@dataclass
class Code:
    """The parts of a file, whether it is a notebook, why its text does not parse (or None), and notes."""

    path: Path
    parts: list[Part]
    notebook: bool = False
    problem: str | None = None
    notes: list[str] = field(default_factory=list)


def read_code(path: Path) -> Code:
    """Read a file. Raises Unjudged if there is none, or if it holds no text."""
    if path.is_dir():
        raise Unjudged(f"{path} is a folder, expected a Python file or a notebook.")
    try:
        status = path.stat()
        size = status.st_size
        if not stat.S_ISREG(status.st_mode):
            raise Unjudged(f"{path} is no regular file, expected a Python file or a notebook.")
        data = b"" if size > _LARGEST else path.read_bytes()
    except FileNotFoundError:
        raise Unjudged(f"there is no file {path}.") from None
    except OSError as error:
        raise Unjudged(f"{path.name} can't be read: {error.strerror}.") from None
    if size > _LARGEST:
        raise Unjudged(f"{path.name} has {size >> 20} MB, expected at most {_LARGEST >> 20} MB of source.")
    if b"\0" in data:
        raise Unjudged(f"{path.name} is a binary file, expected Python source.")
    if not data.strip():
        raise Unjudged(f"{path.name} is empty.")
    code = Code(path, [], notebook=path.suffix == ".ipynb")
    if code.notebook:
        code.parts = _cells(path, data)
    else:
        code.parts = [Part(str(path), _decoded(path, data))]
    code.parts = [Part(part.name, _mended(part, code)) for part in code.parts]
    return code


def _decoded(path: Path, data: bytes) -> str:
    """The text by its declared encoding, or as Latin-1, in which the bytes of old comments have a meaning."""
    try:
        encoding, _ = tokenize.detect_encoding(io.BytesIO(data).readline)
        text = data.decode(encoding)
    except (SyntaxError, UnicodeDecodeError, LookupError):
        text = data.decode("latin-1")
    if sum(not c.isprintable() and c not in "\t\r\n\f\v\ufeff" for c in text) > len(text) // 8:
        raise Unjudged(f"{path.name} is a binary file, expected Python source.")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _cells(path: Path, data: bytes) -> list[Part]:
    """The code cells of a notebook, without the commands of its shell."""
    try:
        notebook = json.loads(data)
        cells = notebook["cells"] if "cells" in notebook else notebook["worksheets"][0]["cells"]
        sources = [
            (number, cell.get("source", cell.get("input", "")))
            for number, cell in enumerate(cells, 1)
            if cell.get("cell_type") == "code"
        ]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, RecursionError):
        raise Unjudged(f"{path.name} is no notebook: its JSON has no cells.") from None
    joined = [(number, "".join(s) if isinstance(s, list) else str(s)) for number, s in sources]
    return [Part(f"{path.name}, cell {number}", _without_magics(text)) for number, text in joined]


def _without_magics(cell: str) -> str:
    """A cell in which the lines of IPython (%matplotlib, !pip, ?name) are `pass`; empty if the cell is no Python."""
    first = cell.lstrip().partition("\n")[0]
    if first.startswith("%%") and first.split()[0] not in ("%%time", "%%timeit", "%%capture", "%%prun"):
        return ""
    lines, continued = [], False
    for line in cell.split("\n"):
        code = line.lstrip()
        magic = code.startswith(("%", "!", "?")) or (code.endswith("?") and "#" not in line)
        magic = magic or re.match(r"[\w, ]+=\s*[!%]", code) is not None
        lines.append("" if continued else line[: len(line) - len(code)] + "pass" if magic else line)
        continued = (continued or magic) and line.rstrip().endswith("\\")
    return "\n".join(lines)


def _mended(part: Part, code: Code) -> str:
    """The source as Python 3 if it parses, perhaps after mending; else as it is, with the problem in `code`."""
    error = _error(part.source)
    if error is None:
        return part.source
    mended, notes = _mend(part.source, Path(part.name).name)
    if _error(mended) is None:
        code.notes += notes
        return mended
    line = f"line {error.lineno}" if error.lineno else "its text"
    code.problem = code.problem or f"{error.msg} ({Path(part.name).name}, {line})"
    return mended


def _error(source: str) -> SyntaxError | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about escapes in somebody's strings
            ast.parse(source)
    except SyntaxError as error:
        return error
    except (ValueError, RecursionError, MemoryError) as error:
        return SyntaxError(str(error) or type(error).__name__)
    return None


def _mend(source: str, name: str) -> tuple[str, list[str]]:
    """The source with odd spaces as spaces and statements of Python 2 as those of Python 3, and what was done."""
    notes = []
    for letter, title in _SPACES.items():
        if letter in source:
            line = source[: source.index(letter)].count("\n") + 1
            notes.append(f"{name}: {title} (U+{ord(letter):04X}, line {line}) was read as a space.")
            source = source.replace(letter, " " if letter not in "\ufeff\u200b" else "")
    lines = [_EXCEPT.sub(r"\1 as \2:", _printed(line)) for line in source.split("\n")]
    changed = [i for i, (a, b) in enumerate(zip(lines, source.split("\n"), strict=True), 1) if a != b]
    if changed:
        notes.append(f"{name}: Python 2 (line {changed[0]}) was read as Python 3.")
        lines = [_ITER.sub(r".\1()", line) for line in lines]
    indented = [re.sub(r"^[ \t]+", lambda m: m.group().expandtabs(8), line) for line in lines]
    return "\n".join(indented if any("\t" in line for line in lines) else lines), notes


def _printed(line: str) -> str:
    """A print statement as a call: print a, b."""
    match = _PRINT.match(line)
    if match is None:
        return line
    before, what, after = match.groups()
    what = re.sub(r"^>>\s*[\w.]+\s*,?", "", (what or "").strip()).rstrip(",")
    return f"{before}print({what}){after or ''}"


def blocks(part: Part) -> list[ast.stmt]:
    """The statements at the top level of a part. Where it does not parse, those blocks of lines that do."""
    if _error(part.source) is None:
        return ast.parse(part.source).body
    lines = part.source.split("\n")
    starts = [i for i, line in enumerate(lines) if line[:1].strip() and line[0] not in "#)]}'\""]
    starts = [i for i in starts if not (i and _joins(lines[i - 1], lines[i]))]
    ends = [*starts[1:], len(lines)]
    found: list[ast.stmt] = []
    k = 0
    while k < len(starts):
        for last in range(k, min(k + _JOINED, len(starts))):  # a string may have lines at the margin
            block = "\n" * starts[k] + "\n".join(lines[starts[k] : ends[last]])
            if _error(block) is None:
                found += ast.parse(block).body
                k = last
                break
        k += 1
    return found


def _joins(before: str, line: str) -> bool:
    """Whether a line belongs to the block of the line before it: a decorated function, or else and its kind."""
    return before.startswith("@") or re.match(r"(else|elif|except|finally)\b", line) is not None
