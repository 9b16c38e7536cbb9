"""Docstrings are written for `help()` first; this is what they need to be pages as well."""

import re
from typing import Any

from sphinx.application import Sphinx

SECTION = re.compile(r"-{3,}$")


def members(app: Sphinx, kind: str, name: str, member: Any, skip: bool, options: Any) -> bool | None:
    """Skip what a class has from another library, and the fields of named tuples."""
    function = getattr(member, "fget", member)
    if "Alias for field number" in (getattr(member, "__doc__", None) or ""):
        return True
    return None if (getattr(function, "__module__", None) or "xhat").startswith("xhat") else True


def plain(line: str) -> str:
    """The same line, in which |x| and from_, outside of code, have no meaning in reStructuredText."""
    parts = line.split("`")
    parts[::2] = [re.sub(r"(\||(?<=\w)_(?!\w))", r"\\\1", part) for part in parts[::2]]
    return "`".join(parts)


def equations(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Show indented blocks as they are: they are equations, whose columns and letters mean something.

    The blocks are those of the text before the first section, where an indent has no other meaning.
    """
    ends = next((i - 1 for i, line in enumerate(lines) if i and SECTION.match(line)), len(lines))
    shown: list[str] = []
    inside = False
    for line in lines[:ends]:
        indented = line.startswith("  ")
        if indented and not inside and not (shown and shown[-2:-1] and shown[-2].rstrip().endswith("::")):
            shown += ["", "::", ""]
        if not indented and line and inside:
            shown.append("")
        inside = indented or (inside and not line)
        shown.append(line if inside else plain(line))
    lines[:ends] = [*shown, ""]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register these before numpydoc's own, whose priority is 500."""
    app.connect("autodoc-skip-member", members)
    app.connect("autodoc-process-docstring", equations, priority=400)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
