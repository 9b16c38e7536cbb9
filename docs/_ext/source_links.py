"""Links from a page to files outside of docs/ are relative in the repository, and lead to its address on the site."""

from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform

# Files outside of docs/ that a page of the site includes.
INCLUDED = {"CHANGELOG.md": "changelog"}


class SourceLinks(SphinxTransform):
    """Runs before Sphinx looks for the targets of links, and for the files that it offers as downloads."""

    default_priority = 5

    def apply(self, **_: Any) -> None:
        """Replace every link whose target exists, and lies outside of docs/."""
        docs = Path(self.app.srcdir).resolve()
        links = [n for n in self.document.findall(nodes.Element) if n.get("reftype") == "myst"]
        for link in links:
            target, anchor = self.target_of(link, docs)
            if target.is_relative_to(docs) or not target.exists():
                continue
            path = target.relative_to(docs.parent).as_posix()
            if path in INCLUDED:
                link["reftarget"] = INCLUDED[path]
            else:
                kind = "tree" if target.is_dir() else "blob"
                address = f"{self.config.source_address}/{kind}/main/{path}" + (
                    f"#{anchor}" if anchor else ""
                )
                link.replace_self(nodes.reference("", "", *link.children, refuri=address))

    def target_of(self, link: nodes.Element, docs: Path) -> tuple[Path, str]:
        """The file that a link of MyST's leads to, and the heading in it; a page is named without its suffix."""
        if link["refdomain"] == "doc":
            return (docs / f"{link['reftarget']}.md").resolve(), link["reftargetid"] or ""
        name, _, anchor = link["reftarget"].partition("#")
        return ((docs / self.env.docname).parent / name).resolve(), anchor


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the transform, and the setting that holds the repository's address."""
    app.add_config_value("source_address", "", "env", str)
    app.add_transform(SourceLinks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
