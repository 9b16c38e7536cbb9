"""Mathematics as MathML, written when the site is built: a browser shows it without a script, and without a network."""

from importlib.resources import files
from typing import Any
from xml.etree import ElementTree

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

# A hat as wide as a letter, in place of one that stretches, and bars without the space around a relation.
BETTER = {
    "<mo>&#x0005E;</mo></mover>": '<mo stretchy="false">&#x002C6;</mo></mover>',
    '<mo stretchy="false">&#x0007C;</mo>': '<mo stretchy="false" lspace="0" rspace="0">&#x0007C;</mo>',
}


def mathml(node: nodes.Element, display: str) -> str:
    """The formula of a node, which is LaTeX; latex2mathml has `aligned` under the name `split`.

    Raises ExtensionError, with the formula, for one that latex2mathml can't read, or of which it would show a
    command as it is written, or a character of HTML unescaped.
    """
    latex = node.astext().strip()
    try:
        formula = str(convert(latex.replace("{aligned}", "{split}"), display=display))
        unknown = [word.text for word in ElementTree.fromstring(formula).iter() if "\\" in (word.text or "")]
    except Exception as error:  # latex2mathml has a class for each fault, most without a sentence
        raise ExtensionError(f"The formula {latex!r} can't be MathML ({type(error).__name__}).") from error
    if unknown:
        raise ExtensionError(f"The formula {latex!r} has {unknown[0]}, which latex2mathml does not know.")
    for theirs, ours in BETTER.items():
        formula = formula.replace(theirs, ours)
    return formula


def inline(translator: Any, node: nodes.math) -> None:
    """A formula in a sentence."""
    translator.body.append(mathml(node, "inline"))
    raise nodes.SkipNode


def block(translator: Any, node: nodes.math_block) -> None:
    """A formula on lines of its own, which scrolls sideways where it is wider than the page."""
    translator.body.append(f'<div class="math" tabindex="0">{mathml(node, "block")}</div>\n')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Register both as the renderer of HTML, and take along the font."""
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    app.config.html_static_path.append(str(files("ziamath") / "fonts"))
    app.config.html_math_renderer = "mathml"
    return {"parallel_read_safe": True, "parallel_write_safe": True}
