"""docs/switching.md: its code runs and prints what it shows, its links lead on, its figures are those measured."""

import contextlib
import io
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import xhat.torch as xt
from xhat.errors import ArgumentError, DtypeError

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "switching.md").read_text("utf-8")
# Each block of code, with what is printed below it.
BLOCKS = re.findall(r"^```python\n(.*?)^```\n(?:\n^```\n(.*?)^```)?", PAGE, flags=re.DOTALL | re.MULTILINE)
LINKS = re.findall(r"\]\(([^)#]+)", PAGE)

X = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def printed() -> list[str]:
    """What the page's code prints, block after block; and it raises nothing."""
    names: dict[str, Any] = {}
    said = []
    for code, _ in BLOCKS:
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(code, "switching.md", "exec"), names)
        said.append(out.getvalue())
    return said


def test_the_code_prints_what_the_page_shows(printed: list[str]) -> None:
    assert len(BLOCKS) >= 4
    assert printed == [shown for _, shown in BLOCKS]
    assert sum(bool(shown) for _, shown in BLOCKS) == 2


def test_the_code_of_the_readme() -> None:
    """What its comments say of the model holds."""
    readme = (ROOT / "README.md").read_text("utf-8")
    (code,) = (
        c
        for c in re.findall(r"^```python\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)
        if "\nimport xhat.torch" in c
    )
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    assert [change.fused for change in names["changes"]] == ["relu"]
    assert "frozen=statistics+affine" in repr(names["model"].train())
    assert names["layer"].skipped.tolist() == [0] * 16 and names["y"].shape == (8, 16, 28, 28)


def test_links_lead_somewhere() -> None:
    assert len(LINKS) > 15
    assert [link for link in LINKS if not (ROOT / "docs" / link).resolve().exists()] == []


def row(start: str) -> list[str]:
    """The cells of the row that starts so."""
    (line,) = re.findall(rf"^\| {re.escape(start)}.*$", PAGE, flags=re.MULTILINE)
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_average_after_an_empty_batch() -> None:
    """The figures of the table: batches of 2, nothing and 4."""
    found = []
    for layer in (nn.BatchNorm1d(1, momentum=None), xt.BatchNorm1d(1, momentum=None)):
        for x in (torch.full((4, 1), 2.0), torch.empty(0, 1), torch.full((4, 1), 4.0)):
            layer(x)
        found.append(f"{float(layer.running_mean):.4g}")
    _, theirs, ours, _ = row("an empty batch")
    assert f"average to {found[0]}" in theirs
    assert ours.endswith(f": {found[1]}")


def test_the_error_far_from_zero() -> None:
    """The figures of the table are those of docs/exactness.md, whose offset is 1e4."""
    exactness = (ROOT / "docs" / "exactness.md").read_text("utf-8")
    (line,) = re.findall(r"^\| NHWC \| 10000 \|.*$", exactness, flags=re.MULTILINE)
    (header,) = re.findall(r"^\| layout \| offset \| y, xhat \|.*$", exactness, flags=re.MULTILINE)
    names = [cell.strip() for cell in header.strip("|").split("|")]
    cells = dict(zip(names, line.strip("|").split("|"), strict=True))
    ours, theirs = float(cells["y, xhat"]), float(cells["y, torch"])
    _, said, mine, _ = row("far from zero")
    assert f"off by {theirs:g} at" in said
    assert float(mine.removeprefix("by ")) == ours


def test_activations_that_are_kept() -> None:
    """The figures of the table are those that the test of memory counts."""
    source = (ROOT / "tests/pytorch/test_saved_memory.py").read_text("utf-8")
    counted = re.findall(r"\(nn\.(\w+), (\d+), (\d+)\)", source)
    _, theirs, ours, _ = row("activations kept")
    assert theirs == ", ".join(f"{before} with {name}" for name, before, _ in counted)
    assert ours == ", ".join(f"{after} with {name}" for name, _, after in counted)


def test_eps_is_checked_in_evaluation_too() -> None:
    assert nn.BatchNorm2d(3, eps=0.0).eval()(X).shape == X.shape
    for kind in (nn.BatchNorm2d, xt.BatchNorm2d):
        with pytest.raises(ValueError, match="eps"):
            kind(3, eps=0.0)(X)
    with pytest.raises(ArgumentError, match=r"eps is 0\.0"):
        xt.BatchNorm2d(3, eps=0.0).eval()(X)


def test_the_memory_format() -> None:
    """torch's layer gives a transposed batch another order; ours gives that of empty_like."""
    x = torch.randn(5, 4, 3, 6).permute(2, 0, 1, 3)
    assert nn.BatchNorm2d(5)(x).stride() != torch.empty_like(x).stride()
    assert xt.BatchNorm2d(5)(x).stride() == torch.empty_like(x).stride()


def test_float64_with_float32_parameters() -> None:
    with pytest.raises(RuntimeError, match="mixed dtype"):
        nn.BatchNorm2d(3)(X.double())
    torch.testing.assert_close(xt.BatchNorm2d(3)(X.double()), nn.BatchNorm2d(3).double()(X.double()))


def test_torchs_layer_for_many_processes_refuses_the_cpu() -> None:
    """A group of one process is enough to see it; what ours does on many, test_sync asks."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(ValueError, match="expected input tensor to be on GPU"):
            nn.SyncBatchNorm(3)(X)
        torch.testing.assert_close(xt.SyncBatchNorm(3)(X), xt.BatchNorm2d(3)(X))
    finally:
        torch.distributed.destroy_process_group()


def test_torchs_sync_conversion_drops_what_ours_has() -> None:
    """And xt.convert_sync does not."""
    theirs = nn.SyncBatchNorm.convert_sync_batchnorm(xt.BatchNorm2d(3, activation="relu"))
    assert type(theirs) is nn.SyncBatchNorm
    ours = xt.convert_sync(nn.Sequential(xt.BatchNorm2d(3, activation="relu")))
    ours = ours[0] if isinstance(ours, tuple) else ours
    assert isinstance(ours[0], xt.SyncBatchNorm) and ours[0].activation == "relu"


@pytest.mark.parametrize("x", [X.int(), X + 0j, X.to_sparse()], ids=["integer", "complex", "sparse"])
def test_input_that_has_no_batch_norm(x: Tensor) -> None:
    with pytest.raises(DtypeError) as raised:
        xt.BatchNorm2d(3)(x)
    assert isinstance(raised.value, NotImplementedError)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_scripting_is_refused_and_tracing_works() -> None:
    layer = xt.BatchNorm2d(3).eval()
    with pytest.raises(ArgumentError, match=r"torch\.jit\.trace, or call xhat\.torch\.revert"):
        torch.jit.script(layer)
    torch.testing.assert_close(torch.jit.trace(layer, X)(X), layer(X))


def test_a_result_may_be_changed_in_place_but_where_it_is_kept() -> None:
    """relu_ behind a layer, as networks are written; a fused residual's y is needed, and autograd says so."""
    for options, added in (({}, None), ({"activation": "silu"}, X), ({"activation": "relu"}, None)):
        leaf = X.clone().requires_grad_()
        xt.BatchNorm2d(3, **options)(leaf, residual=added).relu_().sum().backward()
        assert leaf.grad is not None
    y = xt.BatchNorm2d(3, activation="relu")(X.clone().requires_grad_(), residual=X)
    y.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
