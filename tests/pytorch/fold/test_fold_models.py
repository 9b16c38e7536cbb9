"""Whole models: what lies between, concatenations, and models that only torch.export records.

The reference is the unfolded model in float64.
"""

import copy
import io
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import Between, OneUse, evaluated, in_float64, numbers, off, state_bits
from torch import Tensor, nn

import xhat.torch as xt
from xhat.torch.fold.parts import Border

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
