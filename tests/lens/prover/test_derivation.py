"""The derivation as a text: docs/derivation.md is current, every format is whole, and the command says what it does."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from lens.reporter import browsing

from xhat.cli import main
from xhat.errors import ArgumentError
from xhat.lens import derivation, derive, theorems
from xhat.lens.prover import command as rendering
from xhat.lens.prover import source
from xhat.lens.prover.command import render
from xhat.lens.prover.document import Equation, Note, Points, Table, Text
from xhat.lens.prover.writers import WRITERS

DOCUMENT = Path(__file__).parents[3] / "docs" / "derivation.md"
running = browsing.running  # the fixture of a Chromium

BLOCKS = [
    Text("**Strong** <b>, `a_i < b & c`, $x_i < 2$, 100 % & more."),
    Equation(r"a < b"),
    Points(("one", "two ∂ and × #3")),
    Table(("a", "b", "c", "d"), (("1", "x_i", "$y_i$", ""),)),
    Note((Text("inside"), Equation(r"\begin{aligned} a &= 1 \\ &= 2 \end{aligned}"))),
]


def test_the_document_is_current():
    written = DOCUMENT.read_text(encoding="utf-8")
    assert written == render("md"), "run: xhat derive --format md -o docs/derivation.md"


@pytest.mark.parametrize("style", ["md", "tex"])
def test_every_display_stands_there_as_in_the_source_and_corrected(style):
    text = render(style)
    for record in derivation():
        assert record.source.strip() in text
        assert record.corrected is None or record.corrected in text
        assert record.reason in text
    for theorem in theorems():
        assert theorem.latex in text


def test_every_correction_has_its_reason_and_its_numbers():
    text = render("md")
    for record in derivation():
        assert record.words in text
        assert record.reason in text
        if record.witness:
            assert f"{float(record.witness['left']):.6g} on the left" in text


class Page(HTMLParser):
    """What a page is made of: every tag closed in its order, and whatever could make a request."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_is_whole_and_asks_for_nothing():
    text = render("html")
    page = Page(text)
    assert page.open == []
    assert page.links == []
    assert {"script", "link", "img", "iframe"}.isdisjoint(page.tags)
    assert "url(" not in text
    assert "$" not in text
    assert "**" not in text
    sources = sum(record.source != record.corrected and record.verdict != "holds" for record in derivation())
    displays = len(source.displays()) + sources + len(theorems())
    assert text.count('<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">') == displays


def test_a_page_that_is_not_whole_is_seen():
    with pytest.raises((AssertionError, IndexError)):
        Page("<p><b>text</p></b>")


@pytest.mark.browser
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_draws_the_page(running, tmp_path, dark):
    file = tmp_path / "derivation.html"
    file.write_text(render("html"), encoding="utf-8")
    troubles = []
    context = running.new_context(
        viewport={"width": 380, "height": 800}, color_scheme="dark" if dark else "light"
    )
    page = context.new_page()
    page.on("console", lambda message: troubles.append(message.text))
    page.on("request", lambda request: request.url == file.as_uri() or troubles.append(request.url))
    page.goto(file.as_uri())
    # Fractions stand on two lines and sums have their bounds above and below: the mathematics is drawn.
    heights = page.eval_on_selector_all("mfrac", "all => all.map(e => e.getBoundingClientRect().height)")
    assert min(heights) > 15
    assert (
        page.eval_on_selector_all("math", "all => all.filter(e => e.textContent.includes('\\\\')).length")
        == 0
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= 380  # wide equations scroll by themselves
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == "light dark"
    context.close()
    assert troubles == []


def test_each_format_keeps_the_text_and_escapes_it():
    page = WRITERS["html"]("a < b", BLOCKS)
    assert "<h1>a &lt; b</h1>" in page
    assert "<strong>Strong</strong> &lt;b&gt;, <code>a_i &lt; b &amp; c</code>, <math" in page
    assert '<div class="note">\n<p>inside</p>' in page
    assert Page(page).open == []
    assert "- one\n- two" in WRITERS["md"]("t", BLOCKS)
    assert "| 1 | x_i | $y_i$ |  |" in WRITERS["md"]("t", BLOCKS)
    article = WRITERS["tex"]("t", BLOCKS)
    assert r"\textbf{Strong} <b>, \texttt{a\_i < b \& c}, $x_i < 2$, 100 \% \& more." in article
    assert r"two $\partial$ and $\times$ \#3" in article


def test_the_article_is_whole():
    article = render("tex")
    assert article.startswith(r"\documentclass")
    environments = re.findall(r"\\(begin|end)\{(\w+)\}", article)
    stack = []
    for what, name in environments:
        if what == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    assert stack == []
    assert article.isascii()


# ----------------------------------------------------------------------------------------------- the command


def test_the_table_has_every_display_and_closed_form(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "160")
    assert main(["derive"]) == 0
    shown = capsys.readouterr().out
    for record in derivation():
        (line,) = re.findall(rf"^│ \d+ +│ {record.id} .*$", shown, re.MULTILINE)
        assert f"│ {record.verdict} " in line
        assert record.short in line
    for theorem in theorems():
        assert theorem.code in shown
    assert "17 displays: 6 × holds, 5 × notation slip, 5 × wrong, 1 × holds for correction=0." in shown


def test_one_display_is_explained(capsys):
    assert main(["derive", "path-1"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("# 8. The direct path\n")
    record = derivation()[7]
    for part in (record.source, record.corrected, record.reason, record.method):
        assert part in shown
    assert main(["derive", "mean"]) == 0
    assert "In the source" not in capsys.readouterr().out


def test_a_text_is_written_or_printed(capsys, tmp_path):
    assert main(["derive", "--format", "tex", "-o", str(tmp_path / "d.tex")]) == 0
    assert (tmp_path / "d.tex").read_text(encoding="utf-8") == render("tex")
    assert capsys.readouterr().out == ""
    assert main(["derive", "--format", "md"]) == 0
    assert capsys.readouterr().out == render("md")


WITHOUT_VARIANCE = (
    r"\frac{\partial L}{\partial x_i} = \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}}"
    r" \left(\frac{\partial L}{\partial y_i} - \frac{1}{N} \sum_{j=1}^N \frac{\partial L}{\partial y_j}\right)"
)


@pytest.mark.parametrize(
    ("equation", "status", "begins"),
    [
        (r"\sum_{i=1}^N \hat{x}_i = 0", 0, "holds: ... = 0\n    proved for every n"),
        (r"\sigma^2 = \frac{1}{N} \sum_{i=1}^N (x_i - \mu)^2", 0, "holds for correction=0: ... = 1 / N"),
        (WITHOUT_VARIANCE, 1, "wrong: ... = gamma / sqrt(var + eps) * (dL/dy_i - 1 / N * sum_j(dL/dy_j))"),
    ],
)
def test_an_equation_of_ones_own_is_judged(equation, status, begins, capsys):
    assert main(["derive", "--equation", equation]) == status
    shown = capsys.readouterr().out
    assert shown.startswith(begins)
    assert ("refuted" in shown and "left 0.48" in shown) or status == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--equation", "x_i"], "the equation has no equals sign, expected left = right."),
        (["--equation", r"\alpha = 1"], r"the equation can't be read: can't read '\alpha' in '\alpha'."),
        (
            ["--equation", r"\frac{\partial \mu}{\partial \gamma} = 0"],
            r"the equation can't be read: the graph has no edge from \gamma to \mu.",
        ),
        (
            ["--equation", r"\gamma = \sqrt{\gamma^2}"],
            "no numbers refute the equation, but it isn't proved for every n.",
        ),
        (
            ["path-4"],
            f"there is no display 'path-4', expected one of {', '.join(d.id for d in source.displays())}.",
        ),
        (["-o", "x.md"], "a table has no file, add --format md, html or tex."),
    ],
)
def test_what_cannot_be_done_is_one_sentence(arguments, sentence, capsys):
    assert main(["derive", *arguments]) == 2
    assert capsys.readouterr().err == f"xhat: derive: {sentence}\n"


def test_an_unknown_style_and_a_path_that_cannot_be_written(capsys, tmp_path):
    with pytest.raises(ArgumentError, match=r"^derive: format is 'pdf', expected one of md, html, tex\.$"):
        render("pdf")
    missing = tmp_path / "no" / "d.md"
    assert main(["derive", "--format", "md", "-o", str(missing)]) == 2
    sentence = f"xhat derive: can't write {missing} (No such file or directory), choose another --output.\n"
    assert capsys.readouterr().err == sentence


@pytest.mark.parametrize("extra", ["sympy", "rich"])
def test_a_missing_extra_is_one_sentence(extra):
    code = f"import sys; sys.modules[{extra!r}] = None; from xhat.cli import main; sys.exit(main(['derive']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr == f"xhat derive: {extra} is missing, install it with pip install 'xhat[lens]'.\n"
    assert done.returncode == 2


def test_only_the_page_needs_its_extra(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "latex2mathml", None)
    monkeypatch.delitem(sys.modules, "latex2mathml.converter", raising=False)
    assert main(["derive", "--format", "html"]) == 2
    sentence = "xhat derive: latex2mathml is missing, install it with pip install 'xhat[lens]'.\n"
    assert capsys.readouterr().err == sentence
    assert main(["derive", "--format", "md"]) == 0


def test_derive_is_the_function_of_the_lens():
    assert derive is rendering.derive
