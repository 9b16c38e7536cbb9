"""The numbers of a diagnosis, by a computation of their own in float64 from all inputs at once."""

from typing import Any

import numpy as np
import pytest
import torch
from small import CHANNELS
from torch import Tensor, nn

import xhat.torch as xt
from xhat.torch.doctor.rules.batches import unlike
from xhat.torch.doctor.scatter import Scatter


def inputs(
    offset: float, sizes: tuple[int, ...] = (6, 4, 9), dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    g = torch.Generator().manual_seed(3)
    return [(torch.randn(n, CHANNELS, 5, 4, generator=g, dtype=torch.float64) + offset + k).to(dtype)
            for k, n in enumerate(sizes)]  # fmt: skip


def by_channel(xs: list[Tensor]) -> Tensor:
    return torch.cat([x.double().transpose(0, 1).flatten(1) for x in xs], dim=1)


@pytest.mark.parametrize("norm", [nn.BatchNorm2d, xt.BatchNorm2d])
@pytest.mark.parametrize("offset", [0.0, 1e5])
def test_pooled_moments_are_those_of_all_values_in_float64(norm: Any, offset: float) -> None:
    model, xs = nn.Sequential(norm(CHANNELS)), inputs(offset)
    measured = xt.diagnose(model, iter(xs), progress=False)._measured
    assert measured is not None
    m, mean, m2 = measured.taps["batch"][0].pooled
    values = by_channel(xs)
    assert m.tolist() == [values.shape[1]] * CHANNELS
    assert mean == pytest.approx(values.mean(1).numpy(), rel=1e-14)
    assert m2 / m == pytest.approx(values.var(1, correction=0).numpy(), rel=1e-9)


def icc(xs: list[Tensor], eps: float) -> float:
    """The mean square between batches over that of samples, of their means or of their mean squares."""
    ratios = []
    for power in (1, 2):
        of_batches = [x.double().pow(power).mean((2, 3)) for x in xs]
        samples, n = torch.cat(of_batches), sum(map(len, xs))
        between = sum(len(s) * (s.mean(0) - samples.mean(0)) ** 2 for s in of_batches) / (len(xs) - 1)
        weights = (by_channel(xs).square().mean(1) + eps) ** -power
        ratios.append(
            float((weights * between).sum() / (weights * samples.var(0, correction=0) * n / (n - 1)).sum())
        )
    return max(ratios)


def test_the_signals_are_their_definitions() -> None:
    xs = inputs(0.5)
    layer = nn.BatchNorm2d(CHANNELS)
    layer.running_mean.copy_(torch.tensor([1.0, -2.0, 0.5]))  # type: ignore[union-attr]
    layer.running_var.copy_(torch.tensor([4.0, 1.0, 0.5]))  # type: ignore[union-attr]
    layer.num_batches_tracked.fill_(20)  # type: ignore[union-attr]
    d = xt.diagnose(nn.Sequential(layer), xs, progress=False)
    values = by_channel(xs)
    var = values.var(1, correction=0) + layer.eps
    shift = (torch.tensor([1.0, -2.0, 0.5]) - values.mean(1)).abs() / var.sqrt()
    ratio = ((torch.tensor([4.0, 1.0, 0.5]) + layer.eps) / var).log().abs()
    means = torch.stack([x.double().mean((0, 2, 3)) for x in xs])
    between = means.var(0)
    row = d.layers[0]
    assert row["shift"] == pytest.approx(float(shift.quantile(0.9)), rel=1e-6)
    assert row["log_variance"] == pytest.approx(float(ratio.quantile(0.9)), rel=1e-6)
    assert row["noise"] == pytest.approx(float((between / var).mean().sqrt()), rel=1e-9)
    assert row["icc"] == pytest.approx(icc(xs, layer.eps), rel=1e-9)
    assert row["left"] == pytest.approx(0.9**20)
    assert row["m"] == pytest.approx(values.shape[1] / 3)


def test_batches_that_are_shuffled_have_an_icc_of_1() -> None:
    g = torch.Generator().manual_seed(0)
    xs = [torch.randn(8, 40, 3, generator=g) * 2 + 1 for _ in range(60)]
    measured = xt.diagnose(nn.Sequential(nn.BatchNorm1d(40)), xs, progress=False)._measured
    assert measured is not None
    found = measured.signals(measured.layers[0])
    assert found.icc == pytest.approx(1, abs=0.1)
    assert found.noise == pytest.approx((8 * 3) ** -0.5, rel=0.1)


@pytest.mark.parametrize("count", [2, 4, 12])
def test_shuffled_batches_are_hardly_ever_said_to_differ(count: int) -> None:
    """The limit for so few batches is passed by one in a thousand: of 200, by 2 at most."""
    g = torch.Generator().manual_seed(count)
    beyond = 0
    for _ in range(200):
        scatter = Scatter(1)
        for x in torch.randn(count, 16, 1, generator=g):
            scatter.see(x)
            scatter.end_of_batch()
        beyond += scatter.icc(count, 1e-5) > unlike(count)
    assert beyond <= 2


class Corner(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[..., :1, :1]


def test_a_layer_behind_one_that_normalizes_by_the_batch_does_not_make_batches_unlike() -> None:
    """In training, all samples of a batch are alike in this corner, and differ between batches."""
    model = nn.Sequential(nn.BatchNorm2d(CHANNELS), Corner(), nn.BatchNorm2d(CHANNELS))
    xs = inputs(0.0, (8,) * 12)
    for k, x in enumerate(xs):
        x -= k  # what `inputs` adds
        x[..., :1, :1] = 3 + 0.01 * x[..., :1, :1]
    d = xt.diagnose(model.train(), xs, progress=False)
    assert "batches-not-alike" not in [finding.cause for finding in d.findings]
    assert all(row["icc"] < 2 for row in d.layers)


def test_the_four_modes_are_what_they_say() -> None:
    xs = inputs(2.0)
    model = nn.Sequential(nn.BatchNorm2d(CHANNELS), nn.Dropout(0.5)).double()
    data = [(x.double(), None) for x in xs]
    d = xt.diagnose(model, data, lambda output, batch: (output**2).mean(), progress=False)
    eps = model[0].eps
    values = by_channel(xs)
    mean, var = values.mean(1)[:, None], values.var(1, correction=0)[:, None]

    def second_moment(x: Tensor, mean: Any, var: Any) -> float:
        return float((((by_channel([x]) - mean) ** 2) / (var + eps)).mean())

    own = [by_channel([x]) for x in xs]
    by_batch = [
        second_moment(x, v.mean(1)[:, None], v.var(1, correction=0)[:, None])
        for x, v in zip(xs, own, strict=True)
    ]
    assert d.modes["evaluation"] == pytest.approx(np.mean([second_moment(x, 0, 1) for x in xs]), rel=1e-12)
    assert d.modes["batch"] == pytest.approx(np.mean(by_batch), rel=1e-12)
    assert d.modes["pooled"] == pytest.approx(np.mean([second_moment(x, mean, var) for x in xs]), rel=1e-12)
    assert d.modes["train"] == pytest.approx(2, rel=0.2)  # dropout doubles the second moment


def test_lost_digits_are_shown_with_the_real_errors() -> None:
    layer = nn.BatchNorm2d(CHANNELS)
    xs = [x.contiguous(memory_format=torch.channels_last) for x in inputs(3e5)]
    xt.recalibrate(nn.Sequential(layer).eval(), xs, progress=False)
    d = xt.diagnose(nn.Sequential(layer), xs, progress=False)
    found = next(f for f in d.findings if f.cause == "digits-lost")
    with torch.no_grad():
        mean, var = (t.double()[:, None] for t in (layer.running_mean, layer.running_var))  # type: ignore[union-attr]
        exact = (by_channel(xs[:1]) - mean) / (var + layer.eps).sqrt()
        error = float((by_channel([layer.eval()(xs[0])]) - exact).abs().max())
    assert found.evidence["error"] >= 0.9 * error > 1e-3
    assert found.evidence["error_of_xhat"] < 1e-6
    ours = xt.diagnose(nn.Sequential(xt.convert(nn.Sequential(layer))[0]), xs, progress=False)
    assert not any(f.cause == "digits-lost" for f in ours.findings)


def test_padding_is_found_and_left_out_exactly() -> None:
    g = torch.Generator().manual_seed(1)
    lengths = [[20, 13, 9, 17], [20, 20, 11, 8]]
    xs = []
    for batch in lengths:
        x = torch.randn(4, CHANNELS, 20, generator=g) + 3
        for sample, length in zip(x, batch, strict=True):
            sample[:, length:] = 0
        xs.append(x)
    d = xt.diagnose(nn.Sequential(nn.BatchNorm1d(CHANNELS)), xs, progress=False)
    assert d._measured is not None
    m, mean, m2 = d._measured.taps["batch"][0].unpadded
    inside = torch.cat(
        [s[:, :n] for x, batch in zip(xs, lengths, strict=True) for s, n in zip(x, batch, strict=True)], 1
    )
    assert m.tolist() == [inside.shape[1]] * CHANNELS
    assert mean == pytest.approx(inside.double().mean(1).numpy(), rel=1e-9)
    assert m2 / m == pytest.approx(inside.double().var(1, correction=0).numpy(), rel=1e-9)
    found = next(f for f in d.findings if f.cause == "padding-counted")
    assert found.evidence["padded"] == pytest.approx(1 - inside.shape[1] / 160)
    whole = [torch.randn(4, CHANNELS, 20, generator=g) for _ in range(2)]
    assert "padding-counted" not in [
        f.cause for f in xt.diagnose(nn.Sequential(nn.BatchNorm1d(CHANNELS)), whole, progress=False).findings
    ]
