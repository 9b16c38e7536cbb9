"""The demo's second part: two trainings that are one but for the layers, and what is shown of them."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("matplotlib")
pytest.importorskip("rich")
pytest.importorskip("sklearn")

from matplotlib.image import imread
from rich.console import Console

import xhat.torch as xt
from xhat.demo import residual, run, training
from xhat.demo.residual import BATCH, PIXELS, Twin, disagreement


@pytest.fixture(scope="module")
def digits() -> training.Digits:
    """The real ones."""
    return training.load(0)


def train(digits: training.Digits, *, steps: int = 4, seed: int = 0) -> tuple[Twin, Twin, list[xt.Change]]:
    """A short training of both."""
    return residual.train_twins(digits, steps=steps, seed=seed, advance=lambda: None)


def batch_norms(network: nn.Module) -> list[type]:
    return [type(layer) for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]


def test_the_two_trainings_are_one_but_for_the_layers(digits: training.Digits) -> None:
    theirs, ours, changes = train(digits, steps=12)
    assert batch_norms(theirs.network) == [nn.BatchNorm2d] * 9
    assert batch_norms(ours.network) == [xt.BatchNorm2d] * 9
    assert len(changes) == 9
    assert [change.fused for change in changes].count("add, silu") == 3
    assert theirs.losses[-1] < 0.9 * theirs.losses[0]
    assert 0 < disagreement((theirs, ours)).max() < 1e-5  # 0 would be one network, taken twice
    assert len(theirs.losses) == len(ours.losses) == len(theirs.seconds) == len(ours.seconds) == 12


def test_the_seed_decides_and_the_callers_random_numbers_stay(digits: training.Digits) -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    once = train(digits, steps=2, seed=3)[0].losses
    assert torch.equal(torch.rand(3), expected)
    np.testing.assert_allclose(train(digits, steps=2, seed=3)[0].losses, once, rtol=1e-6)
    assert abs(train(digits, steps=2, seed=4)[0].losses[0] - once[0]) > 1e-3


def test_the_held_out_digits_are_read_in_evaluation_mode(digits: training.Digits) -> None:
    _, ours, _ = train(digits, steps=3)
    assert ours.network.training
    shares = []
    for mode in (False, True):
        ours.network.train(mode)
        read = ours.network(residual.images(digits.held_x)).argmax(1).numpy()
        shares.append(np.mean(read == digits.held_labels))
    assert ours.accuracy == shares[0] != shares[1]


def test_an_image_is_the_digit_enlarged(digits: training.Digits) -> None:
    shown = residual.images(digits.x[:3])
    assert shown.shape == (3, 1, PIXELS, PIXELS)
    small = nn.functional.avg_pool2d(shown, PIXELS // 8).reshape(3, 64).numpy()
    assert np.corrcoef(small.ravel(), digits.x[:3].ravel())[0, 1] > 0.95


def test_what_autograd_keeps_is_counted_once_and_nothing_moves() -> None:
    x = torch.rand(BATCH, 5)
    # Two results of 5 numbers and one of 3 a row; x, weights and biases are there anyway.
    network = nn.Sequential(nn.Sigmoid(), nn.Linear(5, 5), nn.Sigmoid(), nn.Linear(5, 3), nn.Sigmoid())
    assert residual._kept(network, x) == pytest.approx(4 * BATCH * (5 + 5 + 3) / 1e6)
    with_state = nn.Sequential(nn.BatchNorm1d(5))
    residual._kept(with_state, x)
    assert with_state[0].num_batches_tracked == 0
    assert with_state[0].running_mean.count_nonzero() == 0


def test_the_converted_network_keeps_less(digits: training.Digits) -> None:
    """SiLU's input is found again from x, and from the residual, which is kept only where nobody else keeps it."""
    theirs, ours, _ = train(digits, steps=1)
    first = (
        4 * BATCH * PIXELS**2 * 16
    )  # bytes of an activation of the first block; of the others a half, a quarter
    stem_and_first_block, second_block, third_block = 3 * first, first / 2, first / 4
    saved = (stem_and_first_block + second_block + third_block) / 1e6
    assert theirs.kept - ours.kept == pytest.approx(saved, rel=1e-3)


def test_disagreement_is_relative() -> None:
    pair = Twin("a", nn.Identity(), losses=[2.0, 1.0]), Twin("b", nn.Identity(), losses=[1.0, 1.0])
    np.testing.assert_array_equal(disagreement(pair), [0.5, 0])


def test_both_parts_are_shown_in_80_columns_with_a_picture(tmp_path: Path) -> None:
    text = io.StringIO()
    out = tmp_path / "out"
    assert run(out, steps=30, console=Console(file=text, highlight=False, width=80)) == 0
    shown = text.getvalue()
    assert "5. A residual network in PyTorch, 5 steps" in shown
    assert "6. The same weights and batches" in shown
    assert "The losses of all steps agree to" in shown
    assert "4.shortcut.1" in shown
    assert str(out / "residual.png") in shown
    lines = [line for line in shown.splitlines() if str(tmp_path) not in line]
    assert max(map(len, lines)) <= 80
    pixels = imread(out / "residual.png")
    assert pixels.shape == (990, 1800, 4)
    panels = [pixels[i:j, k : k + 850] for i, j in ((140, 740), (780, 980)) for k in (0, 900)]
    assert all(np.mean(panel[..., :3] < 0.9) > 0.005 for panel in panels)  # none is empty
