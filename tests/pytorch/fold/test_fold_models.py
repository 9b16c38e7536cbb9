"""Whole models: what lies between, concatenations, activations inside layers, models that torch.export records.

The reference is the unfolded model in float64.
"""

import copy
import io
import pickle
import sys
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import OneUse, evaluated, in_float64, norms_in, numbers, off, state_bits
from torch import Tensor, nn

import xhat.torch as xt
from xhat.torch.fold.parts import Border


@pytest.fixture(params=["torch.fx", "torch.export"])
def recorder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either tool records the graph."""
    if request.param == "torch.export":
        monkeypatch.setattr(sys.modules["xhat.torch.fold.graph"], "_by_fx", lambda *_: 1 / 0)


class Between(nn.Module):
    """What `between` does with the convolution's output, before the batch norm."""

    def __init__(self, between: Any) -> None:
        super().__init__()
        self.conv, self.bn, self.between = nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), between

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.between(self.conv(x))))


BETWEEN = {
    "Dropout": nn.Dropout(0.5),
    "Dropout2d": nn.Dropout2d(0.5),
    "Identity": nn.Identity(),
    "a chain": nn.Sequential(nn.Identity(), nn.Dropout(0.1)),
    "F.dropout": lambda y: F.dropout(y, 0.5, training=False),
    "a copy": lambda y: y.contiguous().clone(),
}


@pytest.mark.parametrize("between", BETWEEN.values(), ids=BETWEEN)
@pytest.mark.usefixtures("recorder")
def test_what_changes_nothing_is_passed(between: Any) -> None:
    folded, (change,) = xt.fold(evaluated(model := Between(between)), x := numbers("between", 2, 3, 7, 9))
    assert change.into == ("conv",)
    assert off(folded, model, x) <= change.bound


@pytest.mark.usefixtures("recorder")
def test_a_linear_layer_over_rows_that_become_samples() -> None:
    """As in LeViT: (N, L, C) -> (N L, C) between the linear layer and the batch norm."""

    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.bn = nn.Linear(7, 5), nn.BatchNorm1d(5)

        def forward(self, x: Tensor) -> Tensor:
            y = self.linear(x)
            return self.bn(y.flatten(0, 1)).reshape_as(y)

    folded, (change,) = xt.fold(evaluated(model := Rows()), x := numbers("rows", 2, 3, 7))
    assert change.into == ("linear",)
    assert off(folded, model, x) <= change.bound


class Concatenated(nn.Module):
    """A batch norm over two convolutions side by side, as in CSP networks."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 1), nn.ConvTranspose2d(3, 6, 1, groups=3)
        self.drop, self.bn, self.more = nn.Dropout(), nn.BatchNorm2d(10), nn.BatchNorm2d(10)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.more(self.bn(torch.cat([self.a(x), self.drop(self.b(x))], dim=-3))))


@pytest.mark.usefixtures("recorder")
def test_a_concatenation_is_split() -> None:
    folded, changes = xt.fold(evaluated(model := Concatenated()), x := numbers("cat", 2, 3, 7, 9))
    assert [c.into for c in changes] == [("a", "b")] * 2
    assert off(folded, model, x) <= changes[0].bound


@pytest.mark.parametrize("dim", [0, 2, -1])
def test_a_concatenation_along_another_axis_is_left(dim: int) -> None:
    class Other(Concatenated):
        def forward(self, x: Tensor) -> Tensor:
            y = torch.cat([self.a(x)[:, :, :5], self.b(x)[:, :4, :5]], dim)
            return self.bn(y.repeat(1, 3, 1, 1)[:, :10])

    _, changes = xt.fold(evaluated(Other()), numbers("cat", 2, 3, 7, 9))
    assert not any(c.folded for c in changes)


def test_a_dense_block_is_folded_where_a_map_is_used_once() -> None:
    """Behind a concatenation whose parts are used again, a batch norm has to stay."""

    class Dense(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv0, self.norm1, self.conv1 = (
                nn.Conv2d(3, 4, 3, padding=1),
                nn.BatchNorm2d(4),
                nn.Conv2d(4, 6, 1),
            )
            self.norm2, self.conv2 = nn.BatchNorm2d(6), nn.Conv2d(6, 4, 3, padding=1)
            self.norm3 = nn.BatchNorm2d(8)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv0(x)
            y = self.conv2(F.relu(self.norm2(self.conv1(F.relu(self.norm1(x))))))
            return F.relu(self.norm3(torch.cat([x, y], 1)))

    folded, changes = xt.fold(evaluated(model := Dense()), x := numbers("dense", 2, 3, 7, 9))
    assert {c.path: c.into for c in changes} == {"norm1": (), "norm2": ("conv1",), "norm3": ()}
    assert "the output of 'conv0' is used 2 times" in str(changes[2].reason)
    assert off(folded, model, x) <= 1e-5


# ---------------------------------------------------------------------------------------- activations and residuals


@pytest.mark.parametrize("activation", [None, "relu", ("leaky_relu", 0.2), "silu"], ids=str)
@pytest.mark.parametrize("residual", [False, True], ids=["alone", "with a residual"])
@pytest.mark.usefixtures("recorder")
def test_an_activation_inside_of_our_layer_stays_as_one_behind_the_convolution(
    activation: Any, residual: bool
) -> None:
    class Fused(OneUse):
        def __init__(self) -> None:
            super().__init__()
            self.bn = xt.BatchNorm2d(5, activation=activation)

        def forward(self, x: Tensor) -> Tensor:
            return (
                self.bn(self.conv(x), residual=x[:, :1, 1:-1, 1:-1].expand(-1, 5, -1, -1))
                if residual
                else super().forward(x)
            )

    folded, (change,) = xt.fold(evaluated(model := Fused()), x := numbers("fused", 2, 3, 7, 9))
    assert change.into == ("conv",) and norms_in(folded) == 0
    assert off(folded, model, x) <= change.bound
    rest = {None: nn.Identity, "relu": nn.ReLU, "silu": nn.SiLU}
    assert residual or type(folded.bn) is rest.get(activation, nn.LeakyReLU)


def test_a_batch_norm_behind_one_with_an_activation_is_left() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 5, 3), xt.BatchNorm2d(5, activation="relu"), nn.BatchNorm2d(5), nn.ReLU()
    )
    folded, changes = xt.fold(evaluated(model), x := numbers("chain", 2, 3, 7, 9))
    assert [c.into for c in changes] == [("0",), ()]
    assert off(folded, model, x) <= changes[0].bound * 10


def test_a_converted_model_is_folded_like_the_original() -> None:
    model = evaluated(nn.Sequential(Between(nn.Identity()), nn.Conv2d(5, 4, 1), nn.BatchNorm2d(4), nn.SiLU()))
    converted, changes = xt.convert(copy.deepcopy(model))
    assert [c.fused for c in changes] == ["relu", "silu"]
    folded, changes = xt.fold(converted, x := numbers("converted", 2, 3, 7, 9))
    assert [c.into for c in changes] == [("0.conv",), ("1",)]
    assert off(folded, model, x) <= 1e-5


class FrozenBatchNorm2d(nn.Module):
    """As torchvision and detectron2 have it."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.eps = 1e-5
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return x * scale.view(1, -1, 1, 1) + (self.bias - self.running_mean * scale).view(1, -1, 1, 1)


def test_a_frozen_copy_is_folded_in_training_mode_too() -> None:
    model = OneUse()
    model.bn = FrozenBatchNorm2d(5)
    folded, (change,) = xt.fold(evaluated(model).train(), x := numbers("frozen", 2, 3, 7, 9))
    assert change.into == ("conv",)
    assert off(folded, model, x) <= change.bound


def test_our_frozen_layer_is_folded_in_training_mode() -> None:
    model = xt.freeze(xt.convert(evaluated(OneUse()))[0]).train()
    folded, (change,) = xt.fold(model, x := numbers("frozen", 2, 3, 7, 9))
    assert change.into == ("conv",)
    assert off(folded, model, x) <= change.bound


# -------------------------------------------------------------------------------------------- what torch.fx can't trace


class Branching(OneUse):
    """Decides by a size: torch.fx has no graph of it."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        return y + self.conv(x) if x.shape[0] % 2 else y


def test_a_model_that_decides_by_sizes_is_recorded_by_export() -> None:
    folded, (change,) = xt.fold(evaluated(model := Branching()), x := numbers("branch", 2, 3, 7, 9))
    assert change.into == ("conv",)
    assert off(folded, model, x) <= change.bound


def test_other_batches_find_out_what_the_example_does_not_reach() -> None:
    model, more = evaluated(Branching()), numbers("branch", 3, 3, 7, 9)
    folded, (change,) = xt.fold(model, numbers("branch", 2, 3, 7, 9), batches=[(more, torch.tensor(1))])
    assert str(change.reason).startswith("folded into conv and undone: the model's outputs are off by")
    assert torch.equal(folded(more), model(more))


def test_a_model_that_nothing_records_is_left() -> None:
    class Opaque(OneUse):
        def forward(self, x: Tensor) -> Tensor:
            return self.bn(self.conv(x)) * float(x.sum().numpy())

    _, (change,) = xt.fold(evaluated(Opaque()), numbers("opaque", 2, 3, 7, 9))
    assert str(change.reason).startswith("no graph of the model can be recorded (torch.fx: ")


# ------------------------------------------------------------------------------------------------- the returned copy


def test_the_callers_model_is_not_changed() -> None:
    model = evaluated(Concatenated())
    before, modules = state_bits(model), [id(m) for m in model.modules()]
    xt.fold(model, numbers("cat", 2, 3, 7, 9))
    assert [id(m) for m in model.modules()] == modules
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


def test_paths_and_classes_stay_and_the_copy_is_saved_as_any_model() -> None:
    folded, _ = xt.fold(evaluated(Concatenated()), x := numbers("cat", 2, 3, 7, 9))
    assert type(folded) is Concatenated and type(folded.bn) is nn.Identity
    assert list(folded.state_dict()) == ["a.weight", "a.bias", "b.weight", "b.bias"]
    for again in (copy.deepcopy(folded), pickle.loads(pickle.dumps(folded))):
        assert torch.equal(again(x), folded(x))
    torch.save(folded.state_dict(), file := io.BytesIO())
    folded.load_state_dict(torch.load(io.BytesIO(file.getvalue())))


def test_unfold_gives_the_parts_back_bit_for_bit() -> None:
    layers = (
        *(
            nn.Conv2d(3, 4, 3, bias=False),
            nn.BatchNorm2d(4, affine=False),
            nn.ReLU(),
            nn.BatchNorm2d(4, affine=False),
        ),
        *(
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 4, 3, padding="same"),
            Concatenated(),
        ),
    )
    model = evaluated(nn.Sequential(*layers[:-1]))
    before, x = state_bits(model), numbers("unfold", 2, 3, 7, 9)
    folded, changes = xt.fold(model, x)
    assert sum(c.folded for c in changes) == 3 and isinstance(folded[6], Border)
    given = xt.unfold(folded, changes)
    assert given is folded
    assert list(folded.state_dict()) == list(before)
    assert all(torch.equal(folded.state_dict()[name], value) for name, value in before.items())
    assert torch.equal(folded(x), model(x)) and repr(folded) == repr(model)


def test_unfold_gives_back_to_a_copy_of_the_folded_model() -> None:
    folded, changes = xt.fold(evaluated(model := OneUse()), x := numbers("unfold", 2, 3, 7, 9))
    again = pickle.loads(pickle.dumps(folded))
    assert torch.equal(xt.unfold(again, changes)(x), model(x))


def test_the_fold_of_bfloat16_has_been_computed_in_float64() -> None:
    model = evaluated(OneUse()).bfloat16()
    folded, _ = xt.fold(model, numbers("bf16", 2, 3, 7, 9, dtype=torch.bfloat16))
    exact = copy.deepcopy(model).double()
    scale = exact.bn.weight / (exact.bn.running_var + exact.bn.eps).sqrt()
    weight = exact.conv.weight * scale.view(-1, 1, 1, 1)
    bias = exact.bn.bias + (exact.conv.bias - exact.bn.running_mean) * scale
    assert torch.equal(folded.conv.weight, weight.bfloat16())
    torch.testing.assert_close(folded.conv.bias, bias.bfloat16(), rtol=2**-8, atol=0)
    assert in_float64(folded, numbers("bf16", 2, 3, 7, 9)).isfinite().all()
