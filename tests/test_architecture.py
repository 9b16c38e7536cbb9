"""The map in ARCHITECTURE.md, held: who imports whom, what an import loads, what is public, how long things get.

A search that finds nothing proves little, so each one here is also run on something that it must find.
"""

import ast
import importlib.util
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from arrows import MAY_IMPORT, MAY_LOAD, RIM
from conftest import in_a_process

import xhat

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "xhat"

FILE_LINES, FUNCTION_LINES = 300, 40
# The limit is an alarm: a longer file is one idea that would be harder to read in two, and stands here with its reason.
LONGER_FILES = {"kernels/isa/kernels.cpp": "the kernels, and the table that lists all of them"}
DRAWERS = frozenset("utils util helpers helper common manager base impl internal misc v2 fast new".split())  # noqa: SIM905


def imports(source: str, package: str) -> Iterator[str]:
    """The full name of everything that is imported anywhere in the source of a module of this package."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] + "." if node.level else ""
            yield from (f"{above}{node.module or ''}.{alias.name}".replace("..", ".") for alias in node.names)


def part_of(name: str) -> str:
    """The part of a dotted name below xhat: its longest beginning that MAY_IMPORT knows, else its first name."""
    words = name.split(".")
    beginnings = (".".join(words[:k]) for k in range(len(words), 0, -1))
    return next((part for part in beginnings if part in MAY_IMPORT), words[0])


def wrong_arrows(part: str, source: str, package: str = "xhat") -> set[str]:
    """What a file of this part, in this package, imports and may not."""
    wrong = set()
    for name in imports(source, package):
        top, _, rest = name.partition(".")
        if top == "xhat":
            allowed = part in RIM or (rest and part_of(rest) in MAY_IMPORT.get(part, set()) | {part})
        else:
            may_load = MAY_LOAD.get(part, MAY_LOAD.get(part.split(".")[0], set()))
            allowed = top in sys.stdlib_module_names or top in may_load
        if not allowed:
            wrong.add(name)
    return wrong


def python_files() -> list[Path]:
    """Every Python file of the repository that a person wrote."""
    return sorted(
        f for d in ("src", "tests", "benchmarks", "examples", "tools") for f in (ROOT / d).rglob("*.py")
    )


def kernel_files() -> list[Path]:
    """Every file of the kernels."""
    return sorted(f for f in (ROOT / "kernels").rglob("*") if f.is_file())


def test_imports_follow_the_arrows() -> None:
    wrong = {}
    for f in PACKAGE.rglob("*.py"):
        package = ".".join(f.relative_to(PACKAGE.parent).parts[:-1])
        module = ".".join(f.relative_to(PACKAGE).with_suffix("").parts)
        wrong[str(f)] = wrong_arrows(part_of(module), f.read_text("utf-8"), package)
    assert {f: names for f, names in wrong.items() if names} == {}


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ("equations", "import numpy"),
        ("equations", "def f():\n    from xhat import ops"),
        ("layout", "from xhat.equations import merge"),
        ("numpy", "from xhat import _kernels"),
        ("plan", "from xhat import _kernels"),
        ("plan", "from xhat.operands import read"),
        ("results", "from xhat.ops import batch_norm"),
        ("ops", "import torch"),
        ("torch.cpu", "from xhat.torch.functional import normalized"),
        ("torch.nn", "from xhat.torch.convert import convert"),
        ("torch.functional", "from xhat.torch import nn"),
        ("ops", "import xhat"),
        ("jax.functional", "from xhat.flax import nnx"),
        ("jax.moments", "from xhat.jax.functional import moments"),
        ("numpy", "import jax"),
        ("flax.nnx", "import equinox"),
        ("lens.checker", "from xhat.torch import BatchNorm1d"),
        ("lens.checker", "from xhat.lens.prover import source"),
        ("lens.paths", "from xhat.lens.reporter.data import Layer"),
        ("lens.prover", "from xhat.lens import check"),
        ("numpy", "from . import _kernels"),
        ("keras", "from xhat.torch import BatchNorm2d"),
        ("states", "import keras"),
        ("a part that is on no map", "from xhat import errors"),
    ],
)
def test_a_wrong_arrow_is_seen(part: str, source: str) -> None:
    assert wrong_arrows(part, source)


LOADED = """
import json, sys
before = set(sys.modules)
{statement}
loaded = {{name.split(".")[0] for name in set(sys.modules) - before}}
print(json.dumps(sorted(loaded - sys.stdlib_module_names)))
"""


def loaded(statement: str) -> set[str]:
    """The packages that a fresh interpreter loads for this statement, but not those that it starts with (Debian's has
    sitecustomize); one that begins with _ belongs to an editable installation."""
    return {name for name in json.loads(in_a_process(LOADED.format(statement=statement))) if name[0] != "_"}


@pytest.mark.parametrize("statement", ["import xhat", "import xhat.numpy", "import xhat.cli"])
def test_an_import_loads_numpy_at_most(statement: str) -> None:
    assert loaded(statement) == {"numpy", "xhat"}


def test_a_heavy_import_is_seen() -> None:
    assert loaded("import xhat, hypothesis") >= {"xhat", "hypothesis", "sortedcontainers"}


PUBLIC = """
import json, types, xhat
names = [n for n, v in vars(xhat).items() if n[0] != "_" and not isinstance(v, types.ModuleType)]
print(json.dumps(names))
"""


def test_the_public_names_are_exactly_those_of_all() -> None:
    public = json.loads(in_a_process(PUBLIC))
    assert xhat.__all__ == sorted(xhat.__all__)
    assert set(xhat.__all__) == set(public)


def test_every_public_name_says_what_it_is() -> None:
    for name in xhat.__all__:
        thing = getattr(xhat, name)
        assert thing.__doc__, name
        assert thing.__module__.startswith("xhat")


# -------------------------------------------------------------------------------------------------- sizes


def said(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> int:
    """How many lines the docstring of a function or class has."""
    doc = node.body[0]
    return (doc.end_lineno or 0) - doc.lineno + 1 if ast.get_docstring(node) is not None else 0


def long_functions(source: str) -> dict[str, int]:
    """Functions of more than 40 lines, the docstring not counted: saying more must not cost anything."""
    found = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1 - said(node)
            if lines > FUNCTION_LINES:
                found[node.name] = lines
    return found


def length(source: str) -> int:
    """The lines of a Python file, without the docstrings of functions and classes whose names have no underscore."""
    documented = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    public = [
        n for n in ast.walk(ast.parse(source)) if isinstance(n, documented) and not n.name.startswith("_")
    ]
    return len(source.splitlines()) - sum(map(said, public))


def test_files_are_short() -> None:
    """Docstrings of public names are not counted, code and comments are.

    Those docstrings are the reference manual: a page for each name, with every argument and an example. Counted, they
    would split files by the length of their manual rather than by idea.
    """
    pages = sorted(f for folder in PACKAGE.rglob("web") for f in folder.iterdir())
    others = {f: len(f.read_text("utf-8").splitlines()) for f in [*kernel_files(), *pages]}
    files = {f: length(f.read_text("utf-8")) for f in python_files()}
    lengths = {str(f.relative_to(ROOT)): n for f, n in {**files, **others}.items()}
    assert {f for f, n in lengths.items() if n > FILE_LINES} == set(LONGER_FILES)
    assert len(lengths) > 20


def test_a_manual_is_not_counted_as_the_length_of_a_file_and_all_else_is() -> None:
    manual = '"""Says\n\n    a lot."""\n'
    lines = "    # why\n    x = 1\n"
    assert length(f"def f():\n    {manual}{lines}") == 3
    assert length(f"class F:\n    {manual}{lines}") == 3
    assert length(f"def _f():\n    {manual}{lines}") == 6
    assert length(f"{manual}x = 1\n") == 4


def test_functions_are_short() -> None:
    found = {str(f.relative_to(ROOT)): long_functions(f.read_text("utf-8")) for f in python_files()}
    assert {f: names for f, names in found.items() if names} == {}


def test_a_long_function_is_seen_and_a_long_docstring_is_not_held_against_it() -> None:
    lines = "    x = 1\n" * FUNCTION_LINES
    assert long_functions("def f():\n" + lines) == {"f": FUNCTION_LINES + 1}
    assert long_functions('def f():\n    """Says\n\n    a lot."""\n' + lines[: -len("    x = 1\n")]) == {}


def test_no_file_is_a_drawer_of_odds_and_ends() -> None:
    files = [*python_files(), *kernel_files()]
    words = {str(f): set(re.split(r"[_.]", f.stem)) | set(f.parent.relative_to(ROOT).parts) for f in files}
    assert {f for f, names in words.items() if names & DRAWERS} == set()


@pytest.mark.skipif(
    not os.environ.get("CI"), reason="outside of continuous integration, frameworks may be missing"
)
@pytest.mark.parametrize("package", ["torch", "jax", "flax", "equinox", "keras"])
def test_nothing_is_skipped_for_want_of_a_package(package: str) -> None:
    assert importlib.util.find_spec(package)
