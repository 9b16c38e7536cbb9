"""The docstrings of public names: their sections, arguments and examples, and their places in the reference."""

import doctest
import inspect
import re
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from docs._ext.signatures import VARIADIC, is_result, parameters

ROOT = Path(__file__).parent.parent
MODULES = {  # each with what it needs beside NumPy
    "xhat": "numpy",
    "xhat.numpy": "numpy",
    "xhat.errors": "numpy",
    "xhat.torch": "torch",
    "xhat.jax": "jax",
    "xhat.flax.nnx": "flax",
    "xhat.flax.linen": "flax",
    "xhat.equinox": "equinox",
    "xhat.keras": "keras",
    "xhat.lens": "sympy",
}
# Layers whose arguments are, but for those that are described, the ones of another library's layer.
INHERITED = ("xhat.flax", "xhat.equinox", "xhat.keras")
# Arguments that the layers of an older torch do not have.
NOT_IN_EVERY_TORCH = {"bias"}
# Classes that a function returns, and that nobody else makes: they have no arguments to describe.
RESULTS = {
    "xhat.Context",
    "xhat.ConvertedState",
    "xhat.Gradients",
    "xhat.Moments",
    "xhat.Paths",
    "xhat.jax.Moments",
    "xhat.torch.Adaptation",
    "xhat.torch.Change",
    "xhat.torch.Diagnosis",
    "xhat.torch.Finding",
    "xhat.torch.Folded",
    "xhat.torch.Recalibrated",
}

KEYWORD = inspect.Parameter.KEYWORD_ONLY
HEADING = re.compile(r"^(\w[\w ]*)\n-{3,}\n", flags=re.MULTILINE)
# `names : type`, as the entries of a section begin.
ENTRY = re.compile(r"^((?:\*{0,2}\w+)(?:, \*{0,2}\w+)*)(?: :.*)?$", flags=re.MULTILINE)


def public() -> Iterator[str]:
    """The full names of everything that a public module exports."""
    for module, needed in MODULES.items():
        if find_spec(needed):
            yield from (f"{module}.{name}" for name in import_module(module).__all__)


def found(name: str) -> Any:
    """The object of this full name."""
    module, _, own = name.rpartition(".")
    return getattr(import_module(module), own)


NAMES = sorted(public())
DESCRIBED = [n for n in NAMES if callable(found(n)) and not n.startswith("xhat.errors.")]


def sections(name: str) -> dict[str, str]:
    """The text of each section of a docstring, by its heading; what stands before the first has none."""
    parts = HEADING.split(inspect.getdoc(found(name)) or "")
    return {"": parts[0], **dict(zip(parts[1::2], parts[2::2], strict=True))}


def entries(text: str) -> set[str]:
    """The names that a section describes."""
    return {name for line in ENTRY.findall(text) for name in line.split(", ")}


def described(name: str) -> set[str]:
    """The arguments that a docstring describes, with the stars before the names of rests."""
    own = sections(name)
    return entries(own.get("Parameters", "")) | entries(own.get("Other Parameters", ""))


def test_every_public_name_has_its_place_in_the_reference() -> None:
    listed = set()
    for page in (ROOT / "docs" / "reference").glob("*.rst"):
        module = ""
        for line in page.read_text("utf-8").splitlines():
            if line.startswith((".. currentmodule::", ".. py:data::")):
                module = line.split()[-1]
                listed |= {f"xhat.torch.{module}"} if "py:data" in line else set()
            elif re.fullmatch(r"   \w+", line):
                listed.add(f"{module}.{line.strip()}")
    modules = {name.rpartition(".")[0] for name in NAMES}
    assert {name for name in listed if name.rpartition(".")[0] in modules} == set(NAMES)


@pytest.mark.parametrize("name", DESCRIBED)
def test_a_docstring_describes_arguments_and_results(name: str) -> None:
    own, obj = sections(name), found(name)
    if is_result(obj):
        return
    taken = parameters(obj)
    rests = {argument for argument in described(name) if argument.startswith("*")}
    of_this_name = described(name) - rests
    assert of_this_name - NOT_IN_EVERY_TORCH <= {p.name for p in taken}
    if not name.startswith(INHERITED):
        needed = {p.name for p in taken if p.kind not in VARIADIC and not (rests and p.kind is KEYWORD)}
        assert needed <= of_this_name
    if not isinstance(obj, type) and inspect.signature(obj).return_annotation is not None:
        assert {"Returns", "Yields"} & set(own)


def told(name: str) -> dict[str, str]:
    """The text of each entry under Parameters and Attributes."""
    own, texts = sections(name), {}
    for section in ("Parameters", "Attributes"):
        for entry in re.split(r"^(?=\S)", own.get(section, ""), flags=re.MULTILINE):
            texts[f"{section}: {entry.partition(' : ')[0]}"] = entry.strip()
    return texts


@pytest.mark.parametrize("name", [name for name in DESCRIBED if name.endswith("2d")])
def test_the_layers_of_a_family_tell_the_same_of_their_arguments(name: str) -> None:
    """Each has a page of its own in the reference, and so a copy of the text."""
    one, two, three = (told(f"{name[:-2]}{dimensions}d") for dimensions in (1, 2, 3))
    assert len(two) > 5
    assert one == two == three


@pytest.mark.parametrize("name", DESCRIBED)
def test_the_examples_of_a_docstring_run(name: str) -> None:
    """As they stand: each imports what it uses."""
    test = doctest.DocTestParser().get_doctest(sections(name).get("Examples", ""), {}, name, None, None)
    assert test.examples
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    runner.run(test, out=said.append)
    assert not said, "".join(said)


def test_only_results_have_no_arguments() -> None:
    assert {name for name in DESCRIBED if is_result(found(name))} == RESULTS & set(NAMES)


def test_the_names_of_a_section_are_found() -> None:
    text = "x, y : array_like\n    Text: of x\n*rest : int\naxis\n    Text.\n"
    assert entries(text) == {"x", "y", "*rest", "axis"}
