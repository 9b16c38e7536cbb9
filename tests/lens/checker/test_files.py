"""Code as people have it: packages, missing modules, other Pythons, notebooks, and files that don't import."""

import json
import os
import sys
from pathlib import Path

import pytest

from xhat.lens import check_file
from xhat.lens.checker.files.verdicts import Verdicts

RIGHT = """
import numpy as np
def forward(x, gamma, beta, eps=1e-5):
    r = 1 / np.sqrt(x.var(0) + eps)
    xhat = (x - x.mean(0)) * r
    return gamma * xhat + beta, (xhat, r, gamma)
def backward(dy, cache):
    xhat, r, gamma = cache
    return gamma * r * (dy - dy.mean(0) - xhat * (dy * xhat).mean(0)), (dy * xhat).sum(0), dy.sum(0)
"""
WRONG = RIGHT.replace("xhat * (dy * xhat).mean(0)", "xhat * (dy * xhat).sum(0)")


def of(path: Path, text: str) -> Verdicts:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return check_file(path)


def test_several_pairs_have_a_verdict_each(tmp_path: Path) -> None:
    alt = WRONG.split("def backward")[1]
    verdicts = of(
        tmp_path / "layers.py", f"{RIGHT}\ndef backward_alt{alt}\ndef layernorm_forward(x): return x\n"
    )
    assert [verdict.subject for verdict in verdicts] == ["forward and backward", "forward and backward_alt"]
    assert [verdict.status for verdict in verdicts] == [0, 1]
    assert (verdicts.status, verdicts.right, bool(verdicts)) == (1, False, False)
    assert verdicts.headline == "layers.py: right: forward and backward; wrong: forward and backward_alt."
    assert verdicts.others == ("layernorm_forward is not batch norm",)
    assert verdicts.names == verdicts[1].names
    assert json.loads(verdicts.as_json())["verdicts"][1]["status"] == 1


def test_one_that_can_not_be_called_is_not_judged_and_the_file_is_not_right(tmp_path: Path) -> None:
    verdicts = of(tmp_path / "layers.py", f"{RIGHT}\ndef backward_alt(dy, cache): raise ValueError('no')\n")
    assert verdicts[0] and verdicts[1].right is None
    assert (verdicts.status, verdicts.right, bool(verdicts)) == (2, None, False)


def test_a_file_is_imported_as_a_part_of_its_package(tmp_path: Path) -> None:
    package = tmp_path / "course" / "week2"
    package.mkdir(parents=True)
    (tmp_path / "course" / "__init__.py").write_text("from course.numbers import EPS\n")
    (tmp_path / "course" / "numbers.py").write_text("EPS = 1e-5\n")
    (package / "__init__.py").write_text("raise RuntimeError('a package that does not import')\n")
    (package / "sums.py").write_text("def mean(x): return x.mean(0)\n")
    text = "from ..numbers import EPS\nfrom .sums import mean\nfrom course import numbers\n" + RIGHT
    before = set(sys.modules), list(sys.path)
    verdicts = of(package / "layers.py", text.replace("dy.mean(0)", "mean(dy)").replace("1e-5", "EPS"))
    assert verdicts and verdicts.notes == ()
    assert (set(sys.modules), sys.path) == before


def test_the_current_folder_and_folders_above_are_on_the_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "sums_here.py").write_text("def mean(x): return x.mean(0)\n")
    (tmp_path / "a" / "above").mkdir(parents=True)
    (tmp_path / "a" / "above" / "number.py").write_text("EPS = 1e-5\n")
    monkeypatch.chdir(tmp_path / "here")
    text = "from sums_here import mean\nfrom above.number import EPS\n" + RIGHT.replace(
        "dy.mean(0)", "mean(dy)"
    )
    verdicts = of(tmp_path / "a" / "b" / "code.py", text.replace("1e-5", "EPS"))
    assert verdicts and verdicts.notes == ()


def test_a_missing_module_is_an_error_only_where_it_is_used(tmp_path: Path) -> None:
    missing = (
        "import triton_of_nobody as triton\nimport triton_of_nobody.language as tl\nfrom nobody import Layer\n"
        "from past.builtins import xrange\nBLOCK = triton.next_power_of_2(5)\n"
        "@triton.jit\ndef kernel(p: tl.constexpr): pass\n"
        "class Table(Layer): pass\n"
        "@triton.jit\ndef mean(x): return x.mean(0)\n"
    )
    right = RIGHT.replace("dy.mean(0)", "mean(dy)").replace("r = 1", "list(xrange(3)); r = 1")
    verdicts = of(tmp_path / "kernel.py", missing + right)
    assert verdicts
    assert "triton_of_nobody is not installed; the file was imported without it." in verdicts.notes
    used = of(tmp_path / "used.py", missing + RIGHT.replace("r = 1", "triton.cdiv(3, 2); r = 1"))
    assert "it uses triton_of_nobody.cdiv, and triton_of_nobody is not installed" in str(used[0].problem)


def test_code_with_its_own_fallback_for_a_missing_module_keeps_it(tmp_path: Path) -> None:
    text = "try:\n    import cupy_of_nobody as xp\nexcept ImportError:\n    import numpy as xp\n"
    verdicts = of(tmp_path / "code.py", text + RIGHT.replace("np.sqrt", "xp.sqrt"))
    assert verdicts and verdicts.notes == ()


def test_other_pythons_and_odd_spaces_are_read_and_said(tmp_path: Path) -> None:
    two = of(tmp_path / "two.py", RIGHT + "\nprint 'a', 3\nfor i in xrange(2): print i\n")
    assert two and two.notes == ("two.py: Python 2 (line 11) was read as Python 3.",)
    spaced = of(tmp_path / "spaced.py", RIGHT.replace("r = 1", "r =\u30001"))
    assert spaced and spaced.notes == (
        "spaced.py: an ideographic space (U+3000, line 4) was read as a space.",
    )


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("open('absent.csv')\n", "FileNotFoundError"),
        ("import sys\nsys.exit(3)\n", "SystemExit: 3"),
        ("def half(:\n    pass\n", "invalid syntax"),
        ("from math import nothing_like_it\n", "ImportError"),
    ],
)
def test_functions_of_a_file_that_does_not_import_are_taken_from_its_syntax_tree(
    text: str, reason: str, tmp_path: Path
) -> None:
    """And nothing else of it runs: neither before nor behind what fails."""
    mark = f"import pathlib\npathlib.Path({str(tmp_path / 'ran')!r}).touch()\n"
    verdicts = of(tmp_path / "code.py", RIGHT + "\nEPS = 1e-5\nscale = lambda x: x\n" + text + mark)
    assert verdicts, str(verdicts)
    (note,) = verdicts.notes
    assert note.startswith("The file was not imported (") and reason in note and "syntax tree" in note
    assert not (tmp_path / "ran").exists()


def test_a_notebook_is_read_and_only_its_functions_run(tmp_path: Path) -> None:
    forward, _, backward = RIGHT.partition("def backward")
    cells = [
        ("markdown", "# Batch norm"),
        ("code", f"%matplotlib inline\n!pip install numpy \\\n   scipy\n{forward}"),
        ("code", "%%bash\nrm -rf nothing"),
        ("code", "from side_effect import nothing\nimport side_effect"),
        ("code", ["def backward", backward]),
        ("code", f"open({str(tmp_path / 'ran')!r}, 'w')\nplot?\n"),
    ]
    text = json.dumps({"cells": [{"cell_type": kind, "source": source} for kind, source in cells]})
    (tmp_path / "side_effect.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    verdicts = of(tmp_path / "nb.ipynb", text)
    assert verdicts and verdicts.notes == ()
    assert not (tmp_path / "ran").exists()
    assert of(tmp_path / "no.ipynb", "{}").problem == "no.ipynb is no notebook: its JSON has no cells."


def test_files_that_hold_no_code_have_their_reason(tmp_path: Path) -> None:
    assert of(tmp_path / "empty.py", " \n").problem == "empty.py is empty."
    (tmp_path / "binary.py").write_bytes(bytes(range(256)) * 9)
    problem = check_file(tmp_path / "binary.py").problem
    assert problem == "binary.py is a binary file, expected Python source."
    if hasattr(os, "mkfifo"):  # which no read would end
        os.mkfifo(tmp_path / "pipe.py")
        assert "is no regular file" in str(check_file(tmp_path / "pipe.py").problem)
    deep = of(tmp_path / "deep.py", "x = " + "(" * 9000 + ")" * 9000)
    assert deep.status == 2
    assert str(check_file(tmp_path).problem).endswith("is a folder, expected a Python file or a notebook.")


def test_a_file_with_a_name_of_many_letters_is_a_file(tmp_path: Path) -> None:
    assert of(tmp_path / "na me ü 名.py", RIGHT)
