"""The documentation site: `make docs` builds this folder into build/docs/html. The parts that are ours lie in _ext."""

import os
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "_ext"))
os.environ.setdefault("KERAS_BACKEND", "jax")  # the pages import every face of the package

ABOUT = tomllib.loads((HERE.parent / "pyproject.toml").read_text("utf-8"))["project"]
project = ABOUT["name"]
release = version = ABOUT["version"]
author = "the xhat authors"
project_copyright = author
source_address = ABOUT["urls"]["Source"]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.viewcode",
    "numpydoc",
    "sphinx_copybutton",
    "commands",
    "mathml",
    "notebooks",
    "signatures",
    "source_links",
]
exclude_patterns = ["_*"]
templates_path = ["_templates"]
nitpicky = True
# Text between single backticks is code, and a link only where it names an object.
nitpick_ignore_regex = [("py:obj", ".*")]

# Markdown: GitHub's dialect, with mathematics between dollars and links to headings.
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4

# The docstrings.
smartquotes = False
highlight_language = "none"
default_role = "py:obj"
autodoc_typehints = "none"  # the types of arguments are in the docstrings, as in NumPy's reference
autodoc_class_signature = "mixed"
numpydoc_show_class_members = False  # the template of classes lists them
python_maximum_signature_line_length = 88
toc_object_entries_show_parents = "hide"

# The look.
html_theme = "furo"
html_title = f"{project} {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_search_summary = False  # it would be fetched, which a browser refuses to pages on a disk
html_show_sphinx = False
html_theme_options = {
    "footer_icons": [{"name": "Source", "url": source_address, "html": "Source", "class": ""}]
}
pygments_style = "friendly"
pygments_dark_style = "monokai"
