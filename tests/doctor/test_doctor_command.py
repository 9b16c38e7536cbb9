"""`xhat doctor`: standard output, standard error, and exit status."""

import json
import sys

import pytest
import torch
from torch import nn

import xhat.torch as xt
from xhat.cli import main

TRAIN = """
import torch
from torch import nn

print("a user prints")

def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2))
    return model, [(torch.randn(32, 6), torch.randint(2, (32,))) for _ in range(8)]

def healthy():
    model, batches = network()
    for _ in range(20):
        for x, _ in batches:
            model(x)
    return model.eval(), batches

def loss(output, batch):
    print("and prints")
    return nn.functional.cross_entropy(output, batch[1])

def broken():
    model, batches = healthy()
    model[1].running_var[2] = torch.nan
    return model, batches, loss

def raises():
    return network()[0], 1 / 0

def ends():
    raise SystemExit("no data")

def one(): return network()[0]
def four(): return (*network(), loss, 3)
def no_model(): return [1], [2]
def no_loss(): return (*network(), "mse")
def no_batches(): return network()[0], []
def no_norm(): return nn.Linear(6, 2), [torch.randn(4, 6)]

def batches_raise():
    def batches():
        yield torch.randn(4, 6)
        raise OSError("disk full")
    return network()[0], batches()

number = 3
class Inner:
    make = staticmethod(healthy)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a program of the user's."""
    (tmp_path / "training_of_mine.py").write_text(TRAIN)
    (tmp_path / "wrong_syntax.py").write_text("def f(:\n")
    (tmp_path / "imports_nothing.py").write_text("import no_such_package\n")
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    yield tmp_path
    assert sys.path == before
    for name in ("training_of_mine", "imports_nothing"):
        sys.modules.pop(name, None)


def run(capsys, *arguments):
    status = main(["doctor", *arguments])
    shown = capsys.readouterr()
    return status, shown.out, shown.err


def checkpoint(folder, name="last.pt", variance=1.5, **options):
    state = nn.Sequential(nn.Linear(3, 5), nn.BatchNorm1d(5)).state_dict()
    state["1.running_var"].fill_(variance)
    state["1.num_batches_tracked"].fill_(5000)
    torch.save(state, folder / name, **options)
    return name


def test_a_healthy_checkpoint_is_0(folder, capsys):
    status, out, err = run(capsys, checkpoint(folder))
    assert (status, out, err) == (0, "last.pt: nothing harmful was seen in 1 batch norm.\n", "")


def test_a_harmful_checkpoint_is_1_and_the_finding_is_printed(folder, capsys):
    status, out, _ = run(capsys, checkpoint(folder, variance=float("nan")))
    assert status == 1
    assert out.startswith("last.pt: statistics-not-finite.\n\nharmful: statistics-not-finite\n  where   1\n")


def test_a_checkpoint_without_batch_norm_is_2(folder, capsys):
    torch.save(nn.LayerNorm(3).state_dict(), "norm.pt")
    assert run(capsys, "norm.pt") == (
        2, "norm.pt has no running statistics: no batch norm can be judged.\n", ""
    )  # fmt: skip


def test_json_is_strict_and_alone_on_standard_output(folder, capsys):
    def not_strict(constant):
        raise AssertionError(constant)

    for target, status in ((checkpoint(folder, variance=float("-inf")), 1), ("training_of_mine:broken", 1)):
        got, out, _ = run(capsys, target, "--json", "--no-progress")
        diagnosis = json.loads(out, parse_constant=not_strict)
        assert got == status and diagnosis["healthy"] is False
        assert diagnosis["findings"][0]["cause"] == "statistics-not-finite"


def test_a_function_is_called_and_its_prints_go_to_standard_error(folder, capsys):
    status, out, err = run(capsys, "training_of_mine:healthy", "--no-progress")
    assert status == 0
    assert "user prints" in err and "user prints" not in out
    expected = xt.diagnose(*sys.modules["training_of_mine"].healthy(), progress=False)
    assert out == f"{expected}\n"


def test_a_loss_is_used(folder, capsys):
    _, out, err = run(capsys, "training_of_mine:broken", "--json", "--no-progress")
    assert json.loads(out)["quantity"] == "loss"
    assert "and prints" in err


def test_attributes_of_a_module_are_found(folder, capsys):
    assert run(capsys, "training_of_mine:Inner.make", "--no-progress")[0] == 0


def test_a_model_without_batch_norm_is_2(folder, capsys):
    status, out, _ = run(capsys, "training_of_mine:no_norm", "--no-progress")
    assert status == 2 and "no batch norm" in out


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("nowhere.pt", "there is no file nowhere.pt."),
        ("", ". is a folder, expected a file."),
        ("training_of_mine.py", "training_of_mine.py is Python's source, expected"),
        ("training_of_mine.py:healthy", "training_of_mine.py:healthy is Python's source, expected"),
        ("no_such_module:f", "there is no module 'no_such_module' in "),
        ("training_of_mine.inner:f", "there is no module 'training_of_mine.inner' in "),
        ("training_of_mine:nothing", "training_of_mine has no 'nothing'; it has network, healthy, "),
        ("training_of_mine:number", "training_of_mine:number is int, expected a function."),
        (
            "training_of_mine:one",
            "training_of_mine:one returned Sequential, expected (model, batches) or ",
        ),
        (
            "training_of_mine:four",
            "training_of_mine:four returned 4 values, expected (model, batches) or ",
        ),
        (
            "training_of_mine:no_model",
            "training_of_mine:no_model returned list first, expected a torch.nn",
        ),
        (
            "training_of_mine:no_loss",
            "training_of_mine:no_loss returned str third, expected a function",
        ),
        (
            "training_of_mine:raises",
            "training_of_mine:raises raised ZeroDivisionError: division by zero "
            "(training_of_mine.py, line 29).",
        ),
        (
            "training_of_mine:ends",
            "training_of_mine:ends raised SystemExit: no data (training_of_mine.py, line 32).",
        ),
        ("wrong_syntax:f", "wrong_syntax:f raised SyntaxError: "),
        (
            "imports_nothing:f",
            "imports_nothing:f raised ModuleNotFoundError: No module named 'no_such_package' "
            "(imports_nothing.py, line 1).",
        ),
        ("training_of_mine:no_batches", ""),
        ("training_of_mine:batches_raise", ""),
    ],
)
def test_what_cannot_be_judged_is_one_sentence_and_2(folder, capsys, target, sentence):
    status, out, err = run(capsys, target, "--no-progress")
    lines = [line for line in err.splitlines() if line != "a user prints"]
    assert (status, out) == (2, "")
    assert len(lines) == 1 and lines[0].startswith(f"xhat doctor: {sentence}"), err


def test_an_error_of_the_batches_has_its_message(folder, capsys):
    assert "disk full" in run(capsys, "training_of_mine:batches_raise", "--no-progress")[2]


def test_the_page_is_written(folder, capsys, monkeypatch):
    pytest.importorskip("xhat.torch.doctor.page")
    pytest.importorskip("jinja2")
    status, out, _ = run(capsys, checkpoint(folder, variance=float("nan")), "-o", "page.html")
    assert status == 1 and "statistics-not-finite" in (folder / "page.html").read_text("utf-8")
    assert "statistics-not-finite" in out


def test_without_jinja2_the_page_is_refused_in_one_sentence(folder, capsys, monkeypatch):
    pytest.importorskip("xhat.torch.doctor.page")
    monkeypatch.setitem(sys.modules, "jinja2", None)
    status, out, err = run(capsys, checkpoint(folder), "-o", "page.html")
    assert (status, out) == (2, "")
    assert err == (
        "xhat doctor: jinja2 is missing, install it with pip install 'xhat[doctor]', or omit the page.\n"
    )


def test_a_page_that_cannot_be_written_is_one_sentence(folder, capsys):
    pytest.importorskip("xhat.torch.doctor.page")
    pytest.importorskip("jinja2")
    status, out, err = run(capsys, checkpoint(folder), "-o", "no/such/page.html")
    assert (status, out) == (2, "")
    assert err == (
        "xhat doctor: can't write no/such/page.html (No such file or directory), choose another --output.\n"
    )


def test_a_file_with_a_colon_in_its_name_is_a_file(folder, capsys):
    assert run(capsys, checkpoint(folder, "a:b"))[0] == 0


def test_without_torch_it_is_one_sentence(capsys, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("xhat.torch")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert run(capsys, "last.pt") == (
        2, "",
        "xhat doctor: torch is not installed, expected version 2.11 or newer. "
        "Install one: pip install 'torch>=2.11'.\n",
    )  # fmt: skip
