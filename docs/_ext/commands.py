"""The directive `commands`: the help of every command of the command line, as it prints it."""

import contextlib
import io
import os
from unittest import mock

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from xhat.cli import COMMANDS, main


def help_of(*words: str) -> str:
    """What `xhat WORDS --help` prints, 88 columns wide and without colours."""
    printed = io.StringIO()
    narrow = mock.patch.dict(os.environ, {"COLUMNS": "88", "NO_COLOR": "1"})
    with narrow, contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return printed.getvalue()


class Commands(SphinxDirective):
    """A section for each command."""

    def run(self) -> list[nodes.Node]:
        """The help of `xhat`, then the sections."""
        sections: list[nodes.Node] = [nodes.literal_block("", help_of(), language="text")]
        for name in COMMANDS:
            section = nodes.section("", ids=[f"xhat-{name}"], names=[f"xhat {name}"])
            section += nodes.title("", "", nodes.literal("", f"xhat {name}"))
            section += nodes.literal_block("", help_of(name), language="text")
            sections.append(section)
        return sections


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("commands", Commands)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
