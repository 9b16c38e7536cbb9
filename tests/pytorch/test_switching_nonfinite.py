"""NaN, infinity and overflow: what one bad batch does to the running statistics, by the policy that was asked for."""

import copy
import math
from typing import Any

import pytest
import torch
from definition import generator
from torch import Tensor, nn

import xhat.torch as xt
from xhat.errors import ArgumentError

BAD = [math.nan, math.inf, -math.inf]


def data(n: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Batches of different means."""
    g = generator("nonfinite")
    return [(torch.randn(6, 3, 5, 4, generator=g, dtype=torch.float64) + i).to(dtype) for i in range(n)]


def spoilt(x: Tensor, value: float, *channels: int) -> Tensor:
    """The same with this value somewhere in these channels."""
    x = x.clone()
    for c in channels:
        x[1, c, 2, 3] = value
    return x


def state(layer: nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter and buffer."""
    tensors = [*layer.named_parameters(), *layer.named_buffers()]
    return {name: value.detach().clone() for name, value in tensors}


def test_relu_passes_the_gradient_of_what_is_no_number() -> None:
    """As torch's does: NaN is not below zero."""
    x, residual = data(2)
    residual = spoilt(residual, math.nan, 1).requires_grad_()
    y = xt.batch_norm(x, None, None, training=True, residual=residual, activation="relu")
    y.sum().backward()
    assert residual.grad is not None
    assert residual.grad[1, 1, 2, 3] == 1


# ------------------------------------------------------------------------------------------------------------ skip


def test_counts_have_the_channels_and_the_device_of_what_is_loaded() -> None:
    good, bad = data(2, torch.float32)
    trained = nn.BatchNorm2d(3)
    trained(good)
    with torch.device("meta"):
        empty = xt.BatchNorm2d(3, nonfinite="skip")
    for layer, assign in ((xt.LazyBatchNorm2d(nonfinite="skip"), False), (empty, True)):
        layer.load_state_dict(trained.state_dict(), assign=assign)
        layer(spoilt(bad, math.nan, 1))
        assert layer.skipped is not None
        assert layer.skipped.tolist() == [0, 1, 0]


@pytest.mark.parametrize("momentum", [0.1, 0.0, 1.0, None])
@pytest.mark.parametrize("value", BAD)
def test_skip_leaves_the_channel_and_counts_it(value: float, momentum: float | None) -> None:
    """The other channels move as if nothing had been; the next batch moves all of them."""
    good, bad, last = data(3)
    layer = xt.BatchNorm2d(3, momentum=momentum, nonfinite="skip").double()
    layer(good)
    before = state(layer)
    untouched = copy.deepcopy(layer)
    layer(spoilt(bad, value, 1))
    untouched(bad)
    for name in ("running_mean", "running_var"):
        found = getattr(layer, name)
        assert torch.equal(found[1], before[name][1]), name
        assert torch.equal(found[[0, 2]], getattr(untouched, name)[[0, 2]]), name
    assert layer.skipped.tolist() == [0, 1, 0] and layer.num_batches_tracked == 2
    layer(last)
    assert layer.skipped.tolist() == [0, 1, 0] and bool(layer.running_mean.isfinite().all())


def test_torch_never_recovers() -> None:
    """The trouble: one value, in one batch, and the channel is NaN in evaluation for ever. So is ours by default."""
    for kind in (nn.BatchNorm2d, xt.BatchNorm2d):
        layer = kind(3).double()
        for x in (spoilt(data(1)[0], math.nan, 1), *data(50)):
            layer(x)
        assert layer.running_mean.isnan().tolist() == [False, True, False]
        assert layer.eval()(data(1)[0]).isnan().any((0, 2, 3)).tolist() == [False, True, False]


def test_the_average_is_that_of_the_batches_that_counted() -> None:
    """momentum=None, channel by channel: a batch that was left out has no share, wherever it came."""
    batches = data(5)
    layer = xt.BatchNorm2d(3, momentum=None, nonfinite="skip").double()
    left_out = {0: (0,), 2: (0, 2), 3: (0,)}  # batch -> channels
    for i, x in enumerate(batches):
        layer(spoilt(x, math.nan, *left_out.get(i, ())))
    for c in range(3):
        counted = [x[:, c] for i, x in enumerate(batches) if c not in left_out.get(i, ())]
        torch.testing.assert_close(layer.running_mean[c], torch.stack([v.mean() for v in counted]).mean())
        torch.testing.assert_close(layer.running_var[c], torch.stack([v.var() for v in counted]).mean())
    assert layer.skipped.tolist() == [3, 0, 1] and layer.num_batches_tracked == 5


@pytest.mark.parametrize("later", ["propagate", "raise", "skip"])
def test_what_was_left_out_has_no_share_under_another_policy(later: str) -> None:
    good, bad, last = data(3)
    layer = xt.BatchNorm2d(3, momentum=None, nonfinite="skip").double()
    layer(good)
    layer(spoilt(bad, math.nan, 1))
    layer.nonfinite = later
    layer(last)
    for c in range(3):
        counted = [x[:, c] for i, x in enumerate((good, bad, last)) if (i, c) != (1, 1)]
        torch.testing.assert_close(layer.running_mean[c], torch.stack([v.mean() for v in counted]).mean())
        torch.testing.assert_close(layer.running_var[c], torch.stack([v.var() for v in counted]).mean())


def test_nothing_but_bad_batches() -> None:
    layer = xt.BatchNorm2d(3, momentum=None, nonfinite="skip").double()
    before = state(layer)
    for x in data(3):
        layer(spoilt(x, math.nan, 0, 1, 2))
    assert torch.equal(layer.running_mean, before["running_mean"])
    assert torch.equal(layer.running_var, before["running_var"])
    assert layer.skipped.tolist() == [3, 3, 3]


def test_skip_concerns_the_statistics_alone() -> None:
    """y and dx are the batch's own, NaN in its channel and nowhere else, under any policy."""
    x = spoilt(data(1)[0], math.nan, 1)
    for nonfinite in ("propagate", "skip"):
        leaf = x.clone().requires_grad_()
        y = xt.BatchNorm2d(3, nonfinite=nonfinite).double()(leaf)
        y.square().sum().backward()
        assert leaf.grad is not None
        for t in (y, leaf.grad):
            assert bool(t[:, 1].isnan().all()) and bool(t[:, [0, 2]].isfinite().all())


def test_counts_are_not_in_the_state_dict_and_start_again() -> None:
    """Checkpoints stay torch's; whoever loads one, or resets, has left out nothing."""
    layer = xt.BatchNorm2d(3, nonfinite="skip").double()
    assert list(layer.state_dict()) == list(nn.BatchNorm2d(3).state_dict())
    for start_again in (
        layer.reset_running_stats,
        lambda: layer.load_state_dict(nn.BatchNorm2d(3).state_dict()),
    ):
        layer(spoilt(data(1)[0], math.nan, 0))
        assert layer.skipped.tolist() == [1, 0, 0]
        start_again()
        assert layer.skipped.tolist() == [0, 0, 0]


def test_the_policy_can_be_set_on_a_layer_that_is_there() -> None:
    """As after convert: the counts come with the option."""
    model, _ = xt.convert(nn.Sequential(nn.BatchNorm2d(3)).double())
    model[0].nonfinite = "skip"
    assert model[0].skipped.tolist() == [0, 0, 0]
    model(spoilt(data(1)[0], math.inf, 2))
    assert model[0].skipped.tolist() == [0, 0, 1]
    with pytest.raises(
        ArgumentError, match="nonfinite is 'ignore', expected one of 'propagate', 'skip', 'raise'"
    ):
        model[0].nonfinite = "ignore"
    assert model[0].nonfinite == "skip"


@pytest.mark.parametrize("strict", [True, False])
def test_a_policy_that_is_set_later_is_recorded_in_one_graph(strict: bool) -> None:
    """The buffer is there before the graph is recorded, and the caller's input stays what it is."""
    layer = xt.BatchNorm2d(3).double()
    layer.nonfinite = "skip"
    bad, bad_too = (spoilt(x, math.nan, 1) for x in data(2))
    given = bad_too.clone()
    compiled = torch.compile(copy.deepcopy(layer), fullgraph=True, backend="aot_eager")
    program = torch.export.export(copy.deepcopy(layer), (bad,), strict=strict).module()
    for run in (layer, compiled, program):
        run(bad), run(bad_too)
        found = dict(run.named_buffers())
        assert next(v for k, v in found.items() if k.endswith("skipped")).tolist() == [0, 2, 0]
        mean = next(v for k, v in found.items() if k.endswith("running_mean"))
        assert torch.equal(mean, layer.running_mean)
    assert torch.equal(bad_too, given) or torch.equal(bad_too.nan_to_num(), given.nan_to_num())
    torch._dynamo.reset()


def test_counts_stay_when_the_policy_is_set_again_and_a_lazy_layer_has_them() -> None:
    layer = xt.BatchNorm2d(3, nonfinite="skip").double()
    layer(spoilt(data(1)[0], math.nan, 0))
    layer.nonfinite = "skip"
    assert layer.skipped.tolist() == [1, 0, 0]
    lazy = xt.LazyBatchNorm2d()
    lazy.nonfinite = "skip"
    lazy(data(1)[0].float())
    assert lazy.skipped.tolist() == [0, 0, 0]
    without = xt.BatchNorm2d(3, track_running_stats=False)
    without.nonfinite = "skip"
    assert without.skipped is None


# ----------------------------------------------------------------------------------------------------------- raise


@pytest.mark.parametrize("value", BAD)
def test_raise_names_the_layer_and_the_channel_and_changes_nothing(value: float) -> None:
    model = nn.Sequential(nn.Identity(), nn.Sequential(xt.BatchNorm2d(3, nonfinite="raise"))).double()
    good, bad = data(2)
    model(good)
    before = state(model)
    with pytest.raises(ArgumentError) as raised:
        model(spoilt(bad, value, 0, 2))
    assert str(raised.value) == (
        "BatchNorm2d '1.0': batch_norm: the batch has NaN or infinity, or a variance that overflows, in channels 0, 2 "
        'of 3, and nonfinite="raise". The running statistics are unchanged.'
    )
    assert isinstance(raised.value, ValueError)
    assert all(torch.equal(value, before[name]) for name, value in state(model).items())
    model(bad)
    assert model[1][0].num_batches_tracked == 2


def test_many_channels_are_not_all_listed() -> None:
    layer = xt.BatchNorm1d(20, nonfinite="raise")
    with pytest.raises(ArgumentError, match=r"in channels 0, 1, 2, 3, 4, 5, 6, 7, \.\.\. of 20, and"):
        layer(torch.full((4, 20), math.nan))
    with pytest.raises(ArgumentError, match="in channel 7 of 20, and"):
        layer(torch.where(torch.arange(20) == 7, math.inf, torch.randn(4, 20)))


# -------------------------------------------------------------------------------------------------------- overflow


@pytest.mark.parametrize("offset", [0.0, 1e30])
def test_numbers_whose_variance_float32_has_not(offset: float) -> None:
    """x near 1e30: y is right (torch's is all zeros); the running variance, 1e60, is no float32."""
    x = data(1)[0]
    huge = (x * 1e30 + offset).float()
    expected = nn.functional.batch_norm(huge.double(), None, None, training=True)
    for nonfinite in ("propagate", "skip"):
        layer = xt.BatchNorm2d(3, affine=False, nonfinite=nonfinite)
        torch.testing.assert_close(layer(huge), expected.float(), rtol=1e-5, atol=1e-5)
        assert bool(layer.running_var.isinf().all()) == (nonfinite == "propagate")
    assert not layer.running_mean.any() and layer.skipped.tolist() == [1, 1, 1]
    assert not nn.BatchNorm2d(3)(huge).any()
    with pytest.raises(ArgumentError, match="or a variance that overflows, in channels 0, 1, 2 of 3"):
        xt.BatchNorm2d(3, nonfinite="raise")(huge)


def test_a_layer_in_float64_keeps_such_a_variance() -> None:
    (x,) = data(1)
    layer = xt.BatchNorm2d(3, momentum=1.0, nonfinite="raise").double()
    layer((x * 1e30).float())
    torch.testing.assert_close(layer.running_var, x.var((0, 2, 3)) * 1e60, rtol=1e-5, atol=0)


@pytest.mark.parametrize("options", [{}, {"momentum": None}], ids=str)
def test_the_function_skips_as_the_layer_does(options: dict[str, Any]) -> None:
    x = spoilt(data(1)[0], math.nan, 1)
    running = torch.zeros(3), torch.ones(3)
    if options:
        with pytest.raises(
            ArgumentError, match="momentum is None, expected a number: only a layer counts its batches"
        ):
            xt.batch_norm(x, *running, training=True, nonfinite="skip", **options)
    else:
        xt.batch_norm(x, *running, training=True, nonfinite="skip")
        assert running[0].ne(0).tolist() == running[1].ne(1).tolist() == [True, False, True]
