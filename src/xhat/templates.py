"""Pages from Jinja2's templates, with the look that all of them share (web/). What a page shows is not decided here."""

from collections.abc import Callable
from importlib.resources import files
from typing import Any

from xhat.errors import ArgumentError

__all__ = ["filled"]


def filled(
    package: str,
    name: str,
    operation: str,
    extra: str,
    filters: dict[str, Callable[..., str]] | None = None,
    **parts: Any,
) -> str:
    """The template `name`.html in the folder web of a package, with its parts: a page as text that UTF-8 can encode.

    operation and extra are for the sentence of the ArgumentError that is raised where Jinja2 is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ModuleNotFoundError:
        raise ArgumentError(
            f"{operation}: jinja2 is missing, install it with pip install 'xhat[{extra}]', or omit the page."
        ) from None

    def read(package: str, file: str) -> str:
        return (files(package) / "web" / file).read_text(encoding="utf-8")

    jinja = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    jinja.filters |= filters or {}
    style, theme = read("xhat", "page.css") + read(package, f"{name}.css"), read("xhat", "theme.js")
    page = jinja.from_string(read(package, f"{name}.html")).render(style=style, theme=theme, **parts)
    return page.encode("utf-8", "backslashreplace").decode("utf-8")
