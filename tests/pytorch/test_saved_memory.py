"""What the forward pass keeps for the backward pass, as hooks on saved tensors see it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from definition import generator
from torch import Tensor, nn
from torch.profiler import profile

import xhat.torch as xt

SHAPE = (8, 5, 12, 12)
NUMBERS = 8 * 5 * 12 * 12


def data(seed: str = "saved", dtype: torch.dtype = torch.float32) -> Tensor:
    """A batch that asks for its gradient."""
    return torch.randn(SHAPE, generator=generator(seed)).to(dtype).requires_grad_()


def kept(run: Callable[..., Tensor], *inputs: Tensor) -> tuple[list[str], int]:
    """What is kept of the size of an activation, by name, each storage once; and the bytes of all the rest."""
    packed: list[Tensor] = []

    def pack(t: Tensor) -> Tensor:
        packed.append(t)
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = run(*inputs)
    known = {t.untyped_storage().data_ptr(): name for name, t in zip(("x", "residual"), inputs, strict=False)}
    known[y.untyped_storage().data_ptr()] = "y"
    found, rest = set(), 0
    for t in packed:
        if t.numel() >= NUMBERS // 4:
            found.add(known.get(t.untyped_storage().data_ptr(), f"{tuple(t.shape)} {t.dtype}"))
        else:
            rest += t.numel() * t.element_size()
    return sorted(found), rest


def layer(activation: Any = None, **options: Any) -> xt.BatchNorm2d:
    """Ours."""
    return xt.BatchNorm2d(5, activation=activation, **options)


PLAIN = [None, "relu", ("leaky_relu", 0.1), "silu"]


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("activation", PLAIN, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_x_alone_is_kept(dtype: torch.dtype, activation: Any, training: bool) -> None:
    """No mask of signs, no y, no xhat: weight, bias and the statistics are all the rest."""
    found, rest = kept(layer(activation).train(training), data(dtype=dtype))
    assert found == ["x"]
    assert rest <= 5 * (4 + 4 + 2 * 8)


@pytest.mark.parametrize(
    ("activation", "expected"),
    [(None, ["x"]), ("relu", ["x", "y"]), (("leaky_relu", 0.1), ["x", "y"]), ("silu", ["residual", "x"])], ids=str,
)  # fmt: skip
def test_a_residual_adds_one_that_is_there_anyway(activation: Any, expected: list[str]) -> None:
    """y tells on which side a ReLU stood, and the next layer keeps it; silu asks for the residual itself."""
    found, _ = kept(lambda x, r: layer(activation)(x, residual=r), data(), data("residual"))
    assert found == expected


@pytest.mark.parametrize("options", [
    {"correction": 1}, {"momentum": None}, {"nonfinite": "skip"}, {"affine": False}, {"track_running_stats": False},
], ids=str)  # fmt: skip
def test_no_option_adds_to_it(options: dict[str, Any]) -> None:
    assert kept(layer("relu", **options), data())[0] == ["x"]


def held(run: Callable[..., Tensor], *inputs: Tensor) -> int:
    """Bytes that are allocated by a forward pass and not given back: y, and whatever is kept in whatever way."""
    run(*inputs)  # once before: first calls have their own
    with profile(profile_memory=True, acc_events=True) as seen:
        y = run(*inputs)
    assert y.grad_fn is not None
    return sum(event.self_cpu_memory_usage for event in seen.events())


@pytest.mark.parametrize("activation", PLAIN, ids=str)
def test_nothing_is_kept_where_hooks_do_not_see_it(activation: Any) -> None:
    """Not by Python objects either: y, the statistics, and what an allocator rounds up."""
    assert 0 <= held(layer(activation), data()) - 4 * NUMBERS <= 500


def test_a_mask_is_kept_as_a_number_of_each_position() -> None:
    """In float64, once for all channels: 2 / C of a float32 activation."""
    mask = torch.rand(8, 1, 12, 12, generator=generator("mask")) < 0.7
    masked = lambda x: layer("relu")(x, mask=mask)  # noqa: E731
    assert kept(masked, data())[0] == ["x"]
    assert 0 <= held(masked, data()) - 4 * NUMBERS - 8 * NUMBERS // 5 <= 500


def test_torch_holds_what_goes_into_a_silu() -> None:
    """A ReLU is forgotten as soon as its y, which the next layer keeps, is there; a SiLU needs another activation."""
    theirs = nn.BatchNorm2d(5)
    assert 0 <= held(nn.Sequential(theirs, nn.ReLU()), data()) - 4 * NUMBERS <= 500
    assert 0 <= held(nn.Sequential(theirs, nn.SiLU()), data()) - 8 * NUMBERS <= 500


@pytest.mark.parametrize(
    "frozen", [dict(statistics=True), dict(affine=True, statistics=False), dict()], ids=str
)
def test_a_frozen_layer_keeps_no_more(frozen: dict[str, bool]) -> None:
    assert kept(xt.freeze(layer("relu"), **frozen), data())[0] == ["x"]


def test_any_memory_format_is_kept_as_it_is() -> None:
    """channels_last, and a slice that the kernels have to copy: what is kept is x, not the copy."""
    last = data().detach().to(memory_format=torch.channels_last).requires_grad_()
    assert kept(layer("relu"), last)[0] == ["x"]
    sliced = data().detach()[:, :, 1:-1, 2:-1].requires_grad_()
    assert kept(layer("relu"), sliced)[0] == ["x"]


def test_nothing_is_kept_without_a_gradient() -> None:
    x = data().detach()
    model = layer("relu").requires_grad_(False)
    assert kept(model, x) == ([], 0)
    with torch.no_grad():
        assert kept(layer("relu"), data()) == ([], 0)


@pytest.mark.parametrize(
    ("activation", "expected"),
    [(nn.ReLU(), ["x", "y"]), (nn.SiLU(), ["(8, 5, 12, 12) torch.float32", "x"])],
    ids=str,
)
def test_torch_keeps_one_more(activation: nn.Module, expected: list[str]) -> None:
    """The trouble: y for a ReLU behind the layer, for a SiLU what goes into it, which nobody else needs."""
    assert kept(nn.Sequential(nn.BatchNorm2d(5), activation), data())[0] == expected


class Block(nn.Module):
    """act(x + bn(conv(act(bn(conv(x))))))."""

    def __init__(self, activation: type[nn.Module]) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(5, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.conv2, self.bn2 = nn.Conv2d(5, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.act1, self.act2 = activation(), activation()

    def forward(self, x: Tensor) -> Tensor:
        """The block."""
        y = self.act1(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return self.act2(y + x)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("activation", "before", "after"), [(nn.ReLU, 9, 9), (nn.SiLU, 12, 8)])
def test_activations_that_a_residual_network_keeps(activation: Any, before: int, after: int) -> None:
    """Two blocks before and after convert. Each convolution and each layer keeps its input; a ReLU adds the last y.

    With a ReLU that is torch's number as well, for its y is the input of what follows. With a SiLU torch keeps what
    goes into each of the four.
    """

    def activations(model: nn.Module) -> int:
        storages: dict[int, Tensor] = {}

        def pack(t: Tensor) -> Tensor:
            if t.numel() == NUMBERS:
                storages[t.untyped_storage().data_ptr()] = t
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            y = model(data())
        assert y.requires_grad
        return len(storages)

    model = nn.Sequential(Block(activation), Block(activation))
    assert activations(model) == before
    model, changes = xt.convert(model)
    assert [change.fused is not None for change in changes] == [True] * 4
    assert activations(model) == after
