"""What the README and the page for NumPy show is so: code, commands, outputs, conventions."""

import json
import re
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import in_a_process

import xhat
from xhat import errors
from xhat.cli import COMMANDS, main
from xhat.numpy import BatchNorm

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
NUMPY = (ROOT / "docs" / "start" / "numpy.md").read_text("utf-8")
PYTHON = re.findall(r"^```python\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
FILE = "# batchnorm.py\n"  # the block that is a file for the checker
# PyTorch's part is run by tests/pytorch/test_switching.py and tests/pytorch/doctor/test_doctor_example.py.
CODE = [block for block in PYTHON if not block.startswith(FILE) and not re.search(r"^import .*torch", block)]


@pytest.fixture(scope="module")
def names() -> dict[str, Any]:
    """What the README's code has named when all of it has run, block after block."""
    found: dict[str, Any] = {}
    for block in CODE:
        exec(compile(block, "README.md", "exec"), found)
    return found


def test_the_first_code_is_ten_lines_that_give_the_gradients(names: dict[str, Any]) -> None:
    assert len(CODE[0].splitlines()) <= 10
    x, dy, paths = (names[name] for name in ("x", "dy", "paths"))
    _, context = xhat.batch_norm(x, names["gamma"], names["beta"], activation="relu")
    dx = xhat.batch_norm_backward(dy, context).dx
    np.testing.assert_allclose(paths.direct + paths.mean + paths.variance, dx, atol=1e-6)
    whole, epoch = x.astype(np.float64), names["epoch"]
    np.testing.assert_allclose(epoch.mean, whole.mean(axis=(0, 2, 3)), rtol=1e-14)
    np.testing.assert_allclose(epoch.var(), whole.var(axis=(0, 2, 3)), rtol=1e-9)


def test_channels_last_is_the_same_without_a_copy(names: dict[str, Any]) -> None:
    x = names["x"]
    last, context = xhat.batch_norm(x.transpose(0, 2, 3, 1), axis=-1)
    assert np.shares_memory(context.x, x)
    np.testing.assert_array_equal(last.transpose(0, 3, 1, 2), xhat.batch_norm(x)[0])


def test_the_mask_leaves_the_padding_out(names: dict[str, Any]) -> None:
    x = names["x"][:2]
    y, _ = xhat.batch_norm(x, mask=np.arange(56) < 40)
    np.testing.assert_allclose(y[..., :40], xhat.batch_norm(x[..., :40])[0], atol=1e-6)


def test_the_checker_says_what_the_readme_says(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (block,) = (block for block in PYTHON if block.startswith(FILE))
    command, said = re.search(r"^\$ xhat (check \S+)\n(.*?)\n```", README, flags=re.MULTILINE).groups()  # type: ignore[union-attr]
    monkeypatch.chdir(tmp_path)
    Path(command.split()[1]).write_text(block)
    assert main(command.split()) == 1
    assert said in " ".join(capsys.readouterr().out.split())


def test_the_checkers_page_shows_what_is_printed(tmp_path: Path) -> None:
    """But for the errors of what is right, which are rounding."""
    from xhat.lens import check_file

    def but_for_rounding(text: str) -> str:
        return re.sub(r"(right  error) \S+", r"\1", text)

    (block,) = (block for block in PYTHON if block.startswith(FILE))
    (tmp_path / "batchnorm.py").write_text(block)
    page = (ROOT / "docs" / "checker.md").read_text("utf-8")
    (shown,) = re.findall(
        r"^    \$ xhat check batchnorm.py\n(.*?)\n\n(?=\S)", page, flags=re.DOTALL | re.MULTILINE
    )
    said = str(check_file(tmp_path / "batchnorm.py"))
    assert but_for_rounding(textwrap.dedent(shown)) == but_for_rounding(said)


def test_the_sentence_about_bad_input() -> None:
    with pytest.raises(errors.ShapeError) as raised:
        xhat.batch_norm(np.ones((8, 64, 32, 32), np.float32), np.ones(3, np.float32))
    assert f"```\n{raised.value}\n```" in NUMPY


def test_every_command_exists() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text("utf-8"), flags=re.MULTILINE))
    named = re.findall(r"(?:^|`)(make|xhat) (\w+)\b", README, flags=re.MULTILINE)
    assert {"demo", "test", "bench"} <= {word for command, word in named if command == "make"}
    assert {word for command, word in named if command == "xhat"} <= set(COMMANDS)
    assert {word for command, word in named if command == "make"} <= targets


CONVENTIONS = dict(re.findall(r"^\| (\w+) \| `BatchNorm\(c(.*)\)` \|$", NUMPY, flags=re.MULTILINE))
# eps, the weight of the new batch, the correction of the running variance, whether channels come last:
# the defaults that the other libraries document.
DOCUMENTED = {
    "PyTorch": (1e-5, 0.1, 1, False),
    "Keras": (1e-3, 0.01, 0, True),
    "Flax": (1e-5, 0.01, 0, True),
    "ONNX": (1e-5, 0.1, 0, False),
}


@pytest.mark.parametrize("library", DOCUMENTED)
def test_conventions_are_those_that_libraries_document(library: str) -> None:
    layer = eval(f"BatchNorm(5{CONVENTIONS[library]})", {"BatchNorm": BatchNorm})
    eps, momentum, running_correction, last = DOCUMENTED[library]
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, (4, 6, 7, 5) if last else (4, 5, 6, 7))
    axes = (0, 1, 2) if last else (0, 2, 3)
    shape = (5,) if last else (5, 1, 1)
    mean, var = x.mean(axes), x.var(axes)
    expected = (x - mean.reshape(shape)) / np.sqrt(var.reshape(shape) + eps)
    np.testing.assert_allclose(layer.forward(x), expected, atol=1e-10)
    np.testing.assert_allclose(layer.running_mean, momentum * mean, rtol=1e-6)
    unbiased = x.var(axes, ddof=running_correction)
    np.testing.assert_allclose(layer.running_var, 1 - momentum + momentum * unbiased, rtol=1e-6)


def test_deviations_of_float64_that_overflow_when_squared() -> None:
    """The limit that the page names, and a step inside of it."""
    x = np.random.default_rng(0).normal(size=(50, 3))
    np.testing.assert_allclose(xhat.batch_norm(x * 1e153)[0].std(axis=0), 1)
    assert np.isnan(xhat.batch_norm(x * 1e155)[0]).all()


def test_a_wrong_equation_is_answered_as_the_page_shows(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sympy")
    equation, shown = re.search(
        r"^\$ xhat derive --equation '(.*)'\n(.*?)^```", NUMPY, flags=re.MULTILINE | re.DOTALL
    ).groups()  # type: ignore[union-attr]
    assert main(["derive", "--equation", equation]) == 1
    assert " ".join(capsys.readouterr().out.split()) == " ".join(shown.split())


def test_the_derivation_counts_as_the_readme_says() -> None:
    pytest.importorskip("sympy")
    held = json.loads(
        in_a_process(
            "import json; from xhat.lens import derivation; print(json.dumps([d.verdict for d in derivation()]))"
        )
    )
    assert (len(held), held.count("holds")) == (17, 6)
