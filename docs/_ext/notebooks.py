"""Notebooks as pages: their texts and their code, without outputs, since a notebook in the repository has none."""

import json
from pathlib import Path

from sphinx.application import Sphinx


def markdown(notebook: str, name: str) -> str:
    """The cells of a notebook, and at the end a link to the file itself."""
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(notebook)["cells"]]
    texts = [f"```python\n{text}\n```" if kind == "code" else text for kind, text in cells]
    return "\n\n".join([*texts, f"{{download}}`This page as a notebook <{name}>`"])


def read(app: Sphinx, page: str, source: list[str]) -> None:
    """Put Markdown in the place of a notebook's text."""
    path = Path(app.env.doc2path(page))
    if path.suffix == ".ipynb":
        source[0] = markdown(source[0], path.name)


def setup(app: Sphinx) -> dict[str, bool]:
    """Take notebooks for Markdown, and make them so when they are read."""
    app.add_source_suffix(".ipynb", "markdown")
    app.connect("source-read", read)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
