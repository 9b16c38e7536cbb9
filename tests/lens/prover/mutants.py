"""Wrong equations, made from right ones by changing one sign, index, power or factor."""

import re
from collections.abc import Iterator

# Pattern -> replacement. A mutant has one occurrence replaced.
RULES = (
    (r"-", "+"),
    (r"(?<=[\w}]) \+ (?=\\frac)", " - "),
    (r"\\sqrt\{(\\sigma\^2 \+ \\epsilon)\}", r"(\1)"),
    (r"\(\\sigma\^2 \+ \\epsilon\)", r"\\sqrt{\\sigma^2 + \\epsilon}"),
    (r" \+ \\epsilon", ""),
    (r"N - c", "N"),
    (r"N - c", "N - 1"),
    (r"N - c", "N - 2"),
    (r"\\frac\{1\}\{N\}", "1"),
    (r"\\gamma(?=})", "1"),
    (r"\\gamma \\cdot ", ""),
    (r"(?<!\\partial )\\hat\{x\}_i", "x_i"),
    (r"(?<!\\partial )\\hat\{x\}_j", "x_j"),
    (r"\\hat\{x\}_j", r"\\hat{x}_i"),
    (r"(?<=\\partial y)_j", "_i"),
    (r"\(x_i - \\mu\)", "x_i"),
    (r"(?<=\))\^2", "^3"),
    (r"\^3", "^2"),
    (r"\^3", ""),
    (r"\\sum_\{[ij]=1\}\^N ", ""),
    (r"(?<==)1(?=\}\^N)", "2"),
    (r"(?<=\{)2(?=[\s}])", "1"),
    (r" \+ \\beta", ""),
    (r" \+ \\frac\{\\partial L\}\{\\partial \\mu\} \\cdot \\frac\{\\partial \\mu\}\{\\partial x_i\}", ""),
)


def equations(latex: str) -> Iterator[str]:
    """Each step of a display as a separate equation."""
    bare = re.sub(r"\\(begin|end)\{aligned\}", "", latex)
    left, *steps = re.split(r"&=|(?<!_\{[ij])=", bare)
    for step in steps:
        yield f"{left} = {step}".replace("\\\\", "")


def mutants(equation: str) -> Iterator[str]:
    """The equation with one change on its right side, for every possible change."""
    left, right = equation.split(" = ", 1)
    for pattern, replacement in RULES:
        for found in re.finditer(pattern, right):
            yield f"{left} = {right[: found.start()]}{found.expand(replacement)}{right[found.end() :]}"
