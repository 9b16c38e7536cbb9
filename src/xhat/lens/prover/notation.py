"""Rewrites equations as papers and lectures print them in the notation of the derivation.

    \\frac{\\partial \\ell}{\\partial \\mu_\\mathcal{B}}    ->    \\frac{\\partial L}{\\partial \\mu}

The rewriting is textual, and each substitution that a reader could dispute is reported. Trees are made in `printed`.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

__all__ = ["Printed", "read"]


class Printed(NamedTuple):
    """The equations of a display in the notation of the derivation, and what was read as what."""

    equations: tuple[str, ...]
    notes: tuple[str, ...]


# A symbol of the derivation after the substitutions below, with its index.
_SYMBOL = r"(?:\\hat\{x\}|\\sigma\^2|\\mu|\\gamma|\\beta|[xyL])(?:_(?:\{\w+\}|\w))?"

_X = r"\\(?:wide)?hat\s*\{\s*x\s*\}|\\(?:wide)?hat\s*x|[xyw]"
_BATCH = r"(?:_\s*(?:\{\s*[BxX]\s*\}|[BxX]))"
_SQUARED = r"(?:\^\s*(?:\{\s*2\s*\}|2))"

# What has no meaning on the page but its looks.
_LAYOUT = (
    (r"\\(?:begin|end)\{(?:equation|align|aligned|alignat|gather|gathered|split|multline)\*?\}", " "),
    (
        r"\\(?:label|tag)\*?\{[^{}]*\}|\\(?:nonumber|notag|displaystyle|textstyle|limits|nolimits)(?![a-zA-Z])",
        " ",
    ),
    (r"\\(?:big|Big|bigg|Bigg)[lrm]?(?![a-zA-Z])", " "),
    (r"\\[,;:!> ]|\\(?:quad|qquad|thinspace)(?![a-zA-Z])|~|\$|\\\[|\\\]|&", " "),
    (r"\\[dt]frac(?![a-zA-Z])", r"\\frac"),
    # An argument without braces is one digit: \frac12 is a half, and x^23 is three times a square.
    (r"\\frac\s*(\d)\s*(\d|[a-zA-Z])", r"\\frac{\1}{\2}"),
    (r"\\frac\s*(\d)", r"\\frac{\1}"),
    (r"(\\frac\s*\{[^{}]*\})\s*(\d)", r"\1{\2}"),
    (r"(\^|\\sqrt)\s*(\d)(?=\d)", r"\1{\2}"),
    (r"\\math(?:cal|scr|frak)\s*(?:\{\s*([BLJ])\s*\}|([BLJ]))", r"\1\2"),
    (
        r"\\(?:math(?:bf|rm|it|sf|bb|cal)|boldsymbol|bm|text|textrm|operatorname)\s*\{([^{}]*)\}",
        r" \1 ",
    ),
    (r"\\(?:math(?:bf|rm|it|sf)|boldsymbol|bm)\s*([a-zA-Z]|\\[a-z]+)", r" \1 "),
)
# Other signs for the same thing.
_SIGNS = (
    (r":=|\\(?:coloneqq|equiv|triangleq|leftarrow|gets|to)(?![a-zA-Z])", " = "),
    (r"\\(?:times|odot|ast|circ)(?![a-zA-Z])|\*", r" \\cdot "),
    (r"\\varepsilon(?![a-zA-Z])", r"\\epsilon"),
    (rf"({_X})\s*\^\s*\{{\s*\(\s*(\w)\s*\)\s*\}}", r"\1_\2"),
    (r"(?<=[^a-zA-Z\\])(?:BN|BatchNorm)\s*(?:_\s*\{[^{}]*\})?\s*\(\s*x\s*(_\w)?\s*\)", r" y\1 "),
    (
        r"(?<=[^a-zA-Z\\])(?:Var|var)\s*[\[(]\s*x(?:_\w)?\s*[\])]|(?<=[^a-zA-Z\\])[Vv]ar(?![a-zA-Z])",
        r" \\sigma^2 ",
    ),
    (r"(?<=[^a-zA-Z\\])(?:E|mean)\s*[\[(]\s*x(?:_\w)?\s*[\])]", r" \\mu "),
    (r"\\(?:bar|overline)\s*(?:\{\s*x\s*\}|x)", r" \\mu "),
    (r"\\left\s*(?:\[|\\\{)|\[|\\\{", "("),
    (r"\\right\s*(?:\]|\\\})|\]|\\\}", ")"),
    (r"\\left\s*\(", "("),
    (r"\\right\s*\)", ")"),
    (r"\\(?:wide)?hat\s*(?:\{\s*(\\mu|\\sigma)\s*\}|(\\mu|\\sigma))", r"\1\2"),
    (r"\|\s*B\s*\|", "N"),
    (r"\\sum\s*_\s*\{\s*x\s*\\in\s*\w+\s*\}", r"\\sum "),
    # The normalized value, with its index inside or outside of the hat.
    (r"\\(?:wide)?hat\s*\{\s*x\s*_\s*(\{\w+\}|\w)\s*\}", r"\\hat{x}_\1"),
    (r"\\(?:wide)?hat\s*\{\s*x\s*\}|\\(?:wide)?hat\s*x", r"\\hat{x}"),
    # The statistics, with the name of the batch as a subscript.
    (rf"\\mu\s*{_BATCH}", r"\\mu "),
    (rf"\{{\s*\\sigma\s*{_BATCH}\s*\}}", r"\\sigma "),
    (rf"\\sigma\s*{_BATCH}\s*{_SQUARED}|\\sigma\s*{_SQUARED}\s*{_BATCH}|\\sigma\s*{_SQUARED}", r"\\sigma^2 "),
    (rf"\\sigma\s*{_BATCH}", r"\\sigma "),
    (r"\\delta\s*_\s*\{\s*(\w)\s*,\s*(\w)\s*\}", r"\\delta_{\1\2}"),
)
_LOSS = r"(?:\\ell|\\mathcal\{[LJ]\}|[Ll]oss|[LlJECf])(?![a-zA-Z_^])"
_NOT_WITHIN_A_WORD = r"(?<![a-zA-Z\\])"


def read(latex: str) -> Printed:
    """The equations of one display.

    Lines and commas separate equations; a line that begins with a sign or a relation continues the line before it.
    Raises ValueError if the batch has two sizes.
    """
    notes: dict[str, None] = {}
    text = f" {latex.strip()} "
    lines = re.split(r"\\\\(?:\[[^\]]*\])?|\\newline|\n\s*\n", text)
    lines = [_substitute(line, _LAYOUT + _SIGNS) for line in lines]
    text = "\n".join(lines)
    text = _derivatives(text, notes)
    text = _sums(text, notes)
    return Printed(tuple(_equations(text)), tuple(notes))


def _substitute(text: str, pairs: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in pairs:
        text = re.sub(pattern, replacement, text)
    return text


def _derivatives(text: str, notes: dict[str, None]) -> str:
    """Derivatives in one form: \\frac{\\partial L}{\\partial x_i}."""

    def fraction(found: re.Match[str]) -> str:
        top, bottom = (part.strip() for part in found.groups())
        if re.fullmatch(_LOSS, top):
            if top != "L":
                notes[f"{top} is read as the loss L"] = None
            top = "L"
        return rf"\frac{{\partial {top}}}{{\partial {bottom}}}"

    sign = rf"(?:\\partial|{_NOT_WITHIN_A_WORD}d)\s*"
    top, bottom = rf"{sign}({_LOSS}|{_SYMBOL})\s*", rf"{sign}({_SYMBOL})\s*"
    text = re.sub(rf"\\frac\s*\{{\s*{top}\}}\s*\{{\s*{bottom}\}}", fraction, text)
    text = re.sub(rf"{top}/\s*{bottom}", fraction, text)

    def short(found: re.Match[str]) -> str:
        notes[f"d{found[1]} is read as the derivative of the loss by {found[1]}"] = None
        return rf"\frac{{\partial L}}{{\partial {found[1]}}}"

    return re.sub(rf"{_NOT_WITHIN_A_WORD}d\s*({_SYMBOL})", short, text)


_LOWER = r"(?:\{\s*(\w)\s*(?:=\s*(\d)\s*|\\in\s*\w+\s*)?\}|(\w))"
_UPPER = r"(?:\{\s*([a-zA-Z])\s*\}|([a-zA-Z])(?![a-zA-Z]))"


def _sums(text: str, notes: dict[str, None]) -> str:
    """Sums with both bounds: \\sum_{i=1}^N. The letter of the upper bound is the size of the batch everywhere."""
    sizes: dict[str, None] = {}

    def bounds(index: str, start: str | None, upper: str | None) -> str:
        if upper:
            sizes[upper] = None
            if upper != "N":
                notes[f"{upper} is read as the number of values N"] = None
        return rf"\sum_{{{index}={start or 1}}}^N "

    # The bounds below first, and from 1: \sum^{m}_{i=0}, \sum_{i=0}^{m-1} -> \sum_{i=1}^m.
    text = re.sub(r"\\sum\s*\^\s*(\{[^{}]*\}|\w)\s*_\s*(\{[^{}]*\}|\w)", r"\\sum_\2^\1", text)
    text = re.sub(
        r"\\sum\s*_\s*\{\s*(\w)\s*=\s*0\s*\}\s*\^\s*\{\s*([a-zA-Z])\s*-\s*1\s*\}", r"\\sum_{\1=1}^\2", text
    )
    text = re.sub(
        rf"\\sum\s*_\s*{_LOWER}(?:\s*\^\s*{_UPPER})?",
        lambda found: bounds(found[1] or found[3], found[2], found[4] or found[5]),
        text,
    )
    if len(sizes) > 1:
        raise ValueError(f"the sums end at {' and at '.join(sizes)}, expected one size of the batch")
    return _one_size(text, next(iter(sizes), None), notes)


def _one_size(text: str, size: str | None, notes: dict[str, None]) -> str:
    """N for the letter of the batch size; without a sum, n and m are such letters."""
    for letter in [size] if size else ["n", "m"]:
        pattern = rf"(?<![a-zA-Z\\_])(?<!_\{{){letter}(?![a-zA-Z_])"
        replaced = text if letter == "N" else re.sub(pattern, "N", text)
        if replaced != text:
            notes[f"{letter} is read as the number of values N"] = None
        text = replaced
    return text


def _equations(text: str) -> list[str]:
    """One string for each equation, without the punctuation around it."""
    found: list[str] = []
    for line in re.split(r"\n|[,;](?=[^=]*=)", text):
        line = line.strip().strip(",;.").strip()
        if not line:
            continue
        continues = line[0] in "=+-" or line.startswith(r"\cdot")
        if found and (continues or not _complete(found[-1])):
            found[-1] += " " + line
        else:
            found.append(line)
    return found


def _complete(line: str) -> bool:
    """Whether an equation can end here: its brackets are closed, and it does not end with a sign."""
    count: Callable[[str], int] = line.count
    return count("(") == count(")") and not re.search(r"(?:[=+-]|\\cdot)\s*$", line)
