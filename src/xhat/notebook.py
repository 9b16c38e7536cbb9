"""Pages in the output of a notebook's cell. It depends on no other file, and on the standard library alone."""

from html import escape
from pathlib import Path

__all__ = ["WrittenPage", "framed"]


def framed(page: str, height: int = 560) -> str:
    """A whole page as one element, for `_repr_html_`: an iframe of this height in pixels, which can be dragged larger.

    The page keeps its styles and scripts to itself, and has no access to the notebook (sandbox). It is light or dark as
    the system is, like a page of its own, and has the same button.
    """
    style = f"width:100%;height:{height}px;border:0;border-radius:8px;resize:vertical;overflow:auto"
    return f'<iframe srcdoc="{escape(page)}" sandbox="allow-scripts" style="{style}"></iframe>'


class WrittenPage(type(Path())):  # type: ignore[misc]  # Path itself has no subclasses before Python 3.12
    """The path of a page that was written; a notebook shows the page."""

    def _repr_html_(self) -> str | None:
        """The page in a frame; None, for which a notebook shows the path, if the file is gone, or no page now."""
        try:
            return framed(self.read_text(encoding="utf-8"), height=760)
        except (OSError, UnicodeError):
            return None
