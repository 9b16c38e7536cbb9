"""Running statistics in few bits stop moving: ours stay float32 or wider, whatever the layer is cast to or loads."""

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from definition import generator
from torch import Tensor, nn

import xhat.torch as xt

STATISTICS = ("running_mean", "running_var")


def data(dtype: torch.dtype = torch.float32) -> Tensor:
    """A batch of variance 16 around 1."""
    return (torch.randn(64, 3, 5, 4, generator=generator("precision"), dtype=torch.float64) * 4 + 1).to(dtype)


def dtypes(layer: nn.Module) -> set[torch.dtype]:
    """Of the running statistics."""
    return {getattr(layer, name).dtype for name in STATISTICS}


# ------------------------------------------------------------------------------------------------- they move


def trained(layer: nn.Module, steps: int) -> float:
    """How far the running variance has come from 1 to the batch's, after so many batches that are alike."""
    x = data(torch.bfloat16)
    for _ in range(steps):
        layer(x)
    found = layer.running_var
    assert isinstance(found, Tensor)
    return float(((found.double() - 1) / (x.double().var((0, 2, 3)) - 1)).mean())


@pytest.mark.parametrize("momentum", [1e-3, 1e-2])
def test_bfloat16_training_reaches_the_variance(momentum: float) -> None:
    layer = xt.BatchNorm2d(3, momentum=momentum).bfloat16()
    assert trained(layer, 1000) == pytest.approx(1 - (1 - momentum) ** 1000, rel=1e-4)


@pytest.mark.parametrize("momentum", [1e-3, 1e-2])
def test_torchs_bfloat16_statistics_stick(momentum: float) -> None:
    """The trouble: half a unit in the last place stops them, long before they have arrived."""
    assert trained(nn.BatchNorm2d(3, momentum=momentum).bfloat16(), 1000) < 0.9 * (1 - (1 - momentum) ** 1000)


# --------------------------------------------------------------------------------------------- they stay wide


CASTS: dict[str, tuple[Callable[[nn.Module], Any], torch.dtype, torch.dtype]] = {
    "half": (lambda m: m.half(), torch.float16, torch.float32),
    "bfloat16": (lambda m: m.bfloat16(), torch.bfloat16, torch.float32),
    "to": (lambda m: m.to(torch.float16), torch.float16, torch.float32),
    "type": (lambda m: m.type(torch.bfloat16), torch.bfloat16, torch.float32),
    "double": (lambda m: m.double(), torch.float64, torch.float64),
    "double, half": (lambda m: m.double().half(), torch.float16, torch.float64),
    "half, float": (lambda m: m.half().float(), torch.float32, torch.float32),
    "half, pickle": (lambda m: pickle.loads(pickle.dumps(m.half())), torch.float16, torch.float32),
    "half, deepcopy": (lambda m: copy.deepcopy(m.half()), torch.float16, torch.float32),
}


@pytest.mark.parametrize("name", CASTS)
def test_a_cast_layer_keeps_its_statistics(name: str) -> None:
    """Parameters follow the cast; of the statistics not a bit is lost."""
    cast, parameters, statistics = CASTS[name]
    layer = xt.BatchNorm2d(3, nonfinite="skip")
    layer(data())
    before = {k: getattr(layer, k).clone() for k in STATISTICS}
    layer = cast(nn.Sequential(layer))[0]
    assert layer.weight.dtype == layer.bias.dtype == parameters and dtypes(layer) == {statistics}
    assert all(torch.equal(getattr(layer, k), before[k].to(statistics)) for k in STATISTICS)
    assert layer.num_batches_tracked.dtype == layer.skipped.dtype == torch.long
    y = layer(data(parameters))
    assert y.dtype == parameters and layer.num_batches_tracked == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("made", [
    lambda dtype: xt.BatchNorm2d(3, dtype=dtype),
    lambda dtype: xt.LazyBatchNorm2d(dtype=dtype),
    lambda dtype: xt.LazyBatchNorm2d().to(dtype),
    lambda dtype: xt.convert(nn.BatchNorm2d(3, dtype=dtype))[0],
    lambda dtype: xt.convert(nn.BatchNorm2d(3).to(dtype))[0],
], ids=["dtype=", "lazy", "lazy, cast", "converted", "cast, converted"])  # fmt: skip
def test_a_layer_made_in_few_bits(made: Any, dtype: torch.dtype) -> None:
    layer = made(dtype)
    layer(data(dtype))
    assert layer.weight.dtype == dtype and dtypes(layer) == {torch.float32}


def test_on_the_meta_device_and_back() -> None:
    """The way large models are built: without memory first, cast or not, filled later."""
    for cast in (
        lambda m: m.to("meta").half(),
        lambda m: m.half().to("meta"),
        lambda m: m.to("meta", torch.half),
    ):
        layer = cast(xt.BatchNorm2d(3, nonfinite="skip"))
        assert dtypes(layer) == {torch.float32}
        assert all(t.is_meta for t in (*layer.parameters(), *layer.buffers()))
        layer = layer.to_empty(device="cpu")
        layer.reset_parameters()
        layer(data(torch.half))
        assert layer.num_batches_tracked == 1 and layer.skipped.tolist() == [0, 0, 0]


# ------------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_checkpoint_of_few_bits_is_widened(dtype: torch.dtype, assign: bool) -> None:
    """Of torch's layer: its numbers as they are, and from there on they move."""
    theirs = nn.BatchNorm2d(3, momentum=1e-3).to(dtype)
    theirs(data(dtype))
    layer = xt.BatchNorm2d(3, momentum=1e-3)
    layer.load_state_dict(theirs.state_dict(), assign=assign)
    assert dtypes(layer) == {torch.float32}
    assert layer.weight.dtype == (dtype if assign else torch.float32)
    for name in STATISTICS:
        assert torch.equal(getattr(layer, name), getattr(theirs, name).float())
    assert trained(layer.to(dtype), 1000) > 0.6


@pytest.mark.parametrize(
    "options", [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}], ids=str
)
def test_checkpoints_both_ways(options: dict[str, Any]) -> None:
    """A state dict of either layer loads strictly into the other, through a file, and y is the same."""
    theirs, ours = nn.BatchNorm2d(3, **options), xt.BatchNorm2d(3, **options)
    for source, target in ((theirs, ours), (ours, theirs)):
        source.train()(data())
        file = io.BytesIO()
        torch.save(source.state_dict(), file)
        file.seek(0)
        assert target.load_state_dict(torch.load(file, weights_only=True)) == ([], [])
        assert list(source.state_dict()) == list(target.state_dict())
        torch.testing.assert_close(target.eval()(data()), source.eval()(data()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.int32])
def test_a_counter_that_is_assigned_counts_on(dtype: torch.dtype) -> None:
    """In float16 it would stop at 2048, in bfloat16 at 256."""
    layer, theirs = xt.BatchNorm2d(3), nn.BatchNorm2d(3)
    for made in (layer, theirs):
        state = {k: v.to(dtype) if "batches" in k else v for k, v in nn.BatchNorm2d(3).state_dict().items()}
        state["num_batches_tracked"].fill_(2048)
        made.load_state_dict(state, assign=True)
        made(data())
    assert layer.num_batches_tracked.dtype == torch.int64 and layer.num_batches_tracked == 2049
    assert theirs.num_batches_tracked.dtype == dtype
    assert (float(theirs.num_batches_tracked) == 2049) == (dtype.itemsize == 4)


def test_a_checkpoint_from_before_there_were_counters() -> None:
    """Version 1 of torch's layer had no num_batches_tracked; it loads as it does there."""
    old = nn.BatchNorm2d(3).state_dict()
    del old["num_batches_tracked"]
    old._metadata[""]["version"] = 1
    layer = xt.BatchNorm2d(3)
    layer(data())
    layer.load_state_dict(old)
    theirs = nn.BatchNorm2d(3)
    theirs(data())
    theirs.load_state_dict(old)
    assert layer.num_batches_tracked == theirs.num_batches_tracked
