"""Writes a document as Markdown, as a page of HTML with MathML, or as LaTeX.

Nothing is said here that isn't in the document.
"""

import re
from collections.abc import Callable, Sequence
from functools import singledispatch
from html import escape

from xhat.lens.prover.document import Block, Equation, Heading, Note, Points, Table, Text

__all__ = ["WRITERS"]

Writer = Callable[[str, Sequence[Block]], str]


def markdown(title: str, blocks: Sequence[Block]) -> str:
    """Markdown with equations between $$."""
    return "\n\n".join([f"# {title}", *map(_markdown, blocks)]) + "\n"


@singledispatch
def _markdown(block: Block) -> str:
    raise TypeError(type(block))


@_markdown.register
def _(block: Heading) -> str:
    return f"{'#' * block.level} {block.text}"


@_markdown.register
def _(block: Text) -> str:
    return block.text


@_markdown.register
def _(block: Equation) -> str:
    return f"$$\n{block.latex}\n$$"


@_markdown.register
def _(block: Points) -> str:
    return "\n".join(f"- {item}" for item in block.items)


@_markdown.register
def _(block: Table) -> str:
    rows = [block.header, tuple("---" for _ in block.header), *block.rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


@_markdown.register
def _(block: Note) -> str:
    return "\n\n".join(_markdown(part) for part in block.blocks if part != Points(()))


_STYLE = """
:root { color-scheme: light dark; --rule: #8884; --soft: #8881; --wrong: #c0392b; }
body { font: 1.05rem/1.55 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 2.6rem; border-bottom: 1px solid var(--rule); padding-bottom: .2rem; }
h3 { margin: 2rem 0 .3rem; }
math { font-size: 1.12em; }
mtd { text-align: left; padding-inline: 0; }
mtd:first-child:not(:last-child) { text-align: right; }
.equation { overflow-x: auto; padding: .7rem 0; }
.note { border-left: 3px solid var(--wrong); background: var(--soft); padding: .2rem 1rem; margin: .8rem 0; }
table { border-collapse: collapse; font-size: .95rem; }
td, th { text-align: left; padding: .25rem .7rem .25rem 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
.wide { overflow-x: auto; }
code { font-size: .92em; }
"""


def html(title: str, blocks: Sequence[Block]) -> str:
    """One page without scripts and without requests; equations are MathML, which browsers draw themselves."""
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    page = "\n".join([f"<h1>{escape(title)}</h1>", *map(_html, blocks)])
    start = f'<!doctype html>\n<html lang="en"><head>{head}<style>{_STYLE}</style></head>'
    return f"{start}\n<body>\n{page}\n</body></html>\n"


@singledispatch
def _html(block: Block) -> str:
    raise TypeError(type(block))


@_html.register
def _(block: Heading) -> str:
    return f"<h{block.level}>{_html_text(block.text)}</h{block.level}>"


@_html.register
def _(block: Text) -> str:
    return f"<p>{_html_text(block.text)}</p>"


@_html.register
def _(block: Equation) -> str:
    return f'<div class="equation">{_mathml(block.latex, "block")}</div>'


@_html.register
def _(block: Points) -> str:
    return "<ul>" + "".join(f"<li>{_html_text(item)}</li>" for item in block.items) + "</ul>"


@_html.register
def _(block: Table) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{_html_text(cell)}</{tag}>" for cell in cells) + "</tr>"

    rows = "\n".join(row(cells, "td") for cells in block.rows)
    return f'<div class="wide"><table>\n{row(block.header, "th")}\n{rows}\n</table></div>'


@_html.register
def _(block: Note) -> str:
    return '<div class="note">\n' + "\n".join(map(_html, block.blocks)) + "\n</div>"


def _mathml(latex: str, display: str) -> str:
    from latex2mathml.converter import convert  # only this format needs it

    # Two names that the converter prefers: its align, and limits that stay above and below inside parentheses.
    latex = latex.replace("{aligned}", "{align*}").replace(r"\sum_", r"\sum\limits_")
    return str(convert(latex, display=display))


def _html_text(text: str) -> str:
    def element(found: re.Match[str]) -> str:
        code, strong, mathematics = found.groups()
        if mathematics:
            return _mathml(mathematics, "inline")
        return f"<code>{escape(code)}</code>" if code else f"<strong>{escape(strong)}</strong>"

    return _replace(text, element, escape)


_PREAMBLE = r"""\documentclass{article}
\usepackage{amsmath,longtable,array}
\usepackage[T1]{fontenc}
\setlength{\parindent}{0pt}
\setlength{\parskip}{0.6em}
\allowdisplaybreaks
\sloppy
"""


def tex(title: str, blocks: Sequence[Block]) -> str:
    """A LaTeX article."""
    start = f"{_PREAMBLE}\\title{{{_tex_text(title)}}}\n\\date{{}}\n\\begin{{document}}\n\\maketitle\n\n"
    return start + "\n\n".join(map(_tex, blocks)) + "\n\n\\end{document}\n"


@singledispatch
def _tex(block: Block) -> str:
    raise TypeError(type(block))


@_tex.register
def _(block: Heading) -> str:
    return f"\\{'section' if block.level == 2 else 'subsection'}*{{{_tex_text(block.text)}}}"


@_tex.register
def _(block: Text) -> str:
    return _tex_text(block.text)


@_tex.register
def _(block: Equation) -> str:
    return f"\\[\n{block.latex.strip()}\n\\]"


@_tex.register
def _(block: Points) -> str:
    items = "\n".join(f"\\item {_tex_text(item)}" for item in block.items)
    return f"\\begin{{itemize}}\n{items}\n\\end{{itemize}}"


@_tex.register
def _(block: Table) -> str:
    rows = [" & ".join(map(_tex_text, row)) + r" \\" for row in (block.header, *block.rows)]
    columns = "r" + r" >{\raggedright\arraybackslash}p{3.6cm}" * 3
    return f"\\begin{{longtable}}{{{columns}}}\n" + "\n".join(rows) + "\n\\end{longtable}"


@_tex.register
def _(block: Note) -> str:
    parts = "\n\n".join(_tex(part) for part in block.blocks if part != Points(()))
    return f"\\begin{{quote}}\\small\n{parts}\n\\end{{quote}}"


def _tex_text(text: str) -> str:
    def element(found: re.Match[str]) -> str:
        code, strong, mathematics = found.groups()
        if mathematics:
            return f"${mathematics}$"
        return f"\\texttt{{{_tex_escape(code)}}}" if code else f"\\textbf{{{_tex_escape(strong)}}}"

    return _replace(text, element, _tex_escape)


def _tex_escape(text: str) -> str:
    text = re.sub(r"([&%$#_{}])", r"\\\1", text).replace("^", r"\^{}")
    return text.replace("∂", r"$\partial$").replace("×", r"$\times$")


def _replace(text: str, element: Callable[[re.Match[str]], str], plain: Callable[[str], str]) -> str:
    """The text with `code`, **strong** and $mathematics$ as elements, and the rest made plain."""
    parts, end = [], 0
    for found in re.finditer(r"`([^`]+)`|\*\*(.+?)\*\*|\$([^$]+)\$", text):
        parts += [plain(text[end : found.start()]), element(found)]
        end = found.end()
    return "".join([*parts, plain(text[end:])])


WRITERS: dict[str, Writer] = {"md": markdown, "html": html, "tex": tex}
