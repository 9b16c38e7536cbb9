"""A fold is returned only if it holds: wrong folds, each made on purpose, are undone; bad input is refused."""

import copy
import sys
from typing import Any

import pytest
import torch
from models import OneUse, evaluated, norms_in, numbers, off, state_bits
from torch import Tensor, nn

import xhat.torch as xt
from xhat.errors import ArgumentError

X = numbers("verified", 2, 3, 7, 9)


class Standardized(nn.Conv2d):
    """Reads its weight, and computes with something else that the graph does not show as computed."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) / self.norm()

    def norm(self) -> float:
        return float(self.weight.detach().norm())


class TwoConvolutions(nn.Module):
    def __init__(self, first: nn.Module) -> None:
        super().__init__()
        self.conv, self.bn, self.other, self.more = (
            first,
            nn.BatchNorm2d(5),
            nn.Conv2d(5, 4, 3),
            nn.BatchNorm2d(4),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.more(self.other(torch.relu(self.bn(self.conv(x)))))


class Hidden(nn.Conv2d):
    """Its output is scaled by a number that is made from its weight outside of the graph."""

    def forward(self, input: Tensor) -> Tensor:
        scale = float(self.weight.detach().norm()) if not isinstance(input, torch.fx.Proxy) else 1.0
        return super().forward(input * scale)


def test_a_fold_that_does_not_hold_is_undone_and_the_others_stay() -> None:
    folded, changes = xt.fold(evaluated(model := TwoConvolutions(Hidden(3, 5, 3))), X)
    assert [c.into for c in changes] == [(), ("other",)]
    assert str(changes[0].reason).startswith("folded into conv and undone: its output is off by")
    assert off(folded, model, X) < 1e-4


@pytest.mark.parametrize("factor", [1 + 1e-6, -1.0, 0.0], ids=["by 1e-6", "by its sign", "altogether"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_wrong_weights_are_found_out(
    factor: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also those that rounding to 16 bits would hide."""
    sites = sys.modules["xhat.torch.fold.sites"]
    right = sites.map_after

    def wrong(*args: Any) -> Any:
        found = right(*args)
        return found._replace(weight=found.weight * factor)

    monkeypatch.setattr(sites, "map_after", wrong)
    model = evaluated(TwoConvolutions(nn.Conv2d(3, 5, 3))).to(dtype)
    folded, changes = xt.fold(model, X.to(dtype))
    assert not any(c.folded for c in changes)
    assert all("undone: its output is off by" in str(c.reason) for c in changes)
    assert torch.equal(folded(X.to(dtype)), model(X.to(dtype)))


def test_a_use_that_no_graph_shows_is_found_out_at_the_models_output() -> None:
    class Peeking(OneUse):
        def forward(self, x: Tensor) -> Tensor:
            y = self.bn(self.conv(x))
            return y * (1.0 if isinstance(x, torch.fx.Proxy) else float(self.conv.weight.detach().sum()))

    folded, (change,) = xt.fold(evaluated(model := Peeking()), X)
    assert str(change.reason).startswith("folded into conv and undone: the model's outputs are off by")
    assert torch.equal(folded(X), model(X))


def test_the_fold_that_spoils_the_models_output_is_the_one_that_is_undone() -> None:
    class Peeking(TwoConvolutions):
        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            return y * (1.0 if isinstance(x, torch.fx.Proxy) else float(self.other.weight.detach().sum()))

    folded, changes = xt.fold(evaluated(model := Peeking(nn.Conv2d(3, 5, 3))), X)
    assert [c.into for c in changes] == [("conv",), ()]
    torch.testing.assert_close(folded(X), model(X), rtol=1e-4, atol=1e-4)


def test_weights_that_overflow_are_undone() -> None:
    model = evaluated(nn.Sequential(nn.Linear(7, 5), nn.BatchNorm1d(5))).half()
    with torch.no_grad():
        model[0].weight.mul_(100)
        model[1].running_var.fill_(1e-6)
        model[1].weight.fill_(100)
        model[1].running_mean.zero_()
    _, (change,) = xt.fold(model, numbers("overflow", 3, 7, dtype=torch.float16) * 1e-3)
    assert "undone: its output is off by nan" in str(change.reason) or "inf" in str(change.reason)


def test_a_model_that_does_not_run_in_float64_is_left() -> None:
    class Single(OneUse):
        def forward(self, x: Tensor) -> Tensor:
            return self.bn(self.conv(x)) @ torch.ones(7, 2, dtype=torch.float32)

    folded, (change,) = xt.fold(evaluated(model := Single()), X)
    assert str(change.reason).startswith("the model does not run in float64, to verify it:")
    assert torch.equal(folded(X), model(X))


def test_a_model_that_rounds_to_float32_inside_is_folded() -> None:
    class Rounding(OneUse):
        def forward(self, x: Tensor) -> Tensor:
            return self.bn(self.conv(x.float().to(x.dtype))).float().softmax(-1).to(x.dtype)

    _, (change,) = xt.fold(evaluated(Rounding()), X)
    assert change.folded


def test_a_model_that_draws_numbers_in_evaluation_is_folded() -> None:
    class Noisy(OneUse):
        def forward(self, x: Tensor) -> Tensor:
            return self.bn(self.conv(x + torch.randn_like(x)))

    model, state = evaluated(Noisy()), torch.get_rng_state()
    _, (change,) = xt.fold(model, X)
    assert change.folded
    assert torch.equal(torch.get_rng_state(), state)


def test_nothing_of_the_caller_is_changed_by_a_model_that_works_in_place() -> None:
    class InPlace(OneUse):
        def forward(self, x: Tensor, scale: Tensor) -> Tensor:
            return torch.relu_(self.bn(self.conv(x.mul_(scale))))

    x, scale = X.clone(), torch.tensor(2.0)
    folded, (change,) = xt.fold(evaluated(model := InPlace()), (x, scale))
    assert change.folded and torch.equal(x, X)
    torch.testing.assert_close(folded(X.clone(), scale), model(X.clone(), scale), rtol=1e-4, atol=1e-4)


def test_inputs_by_name_and_outputs_in_any_container() -> None:
    class Named(OneUse):
        def forward(self, x: Tensor, *, scale: Any = None, pair: Any = None) -> Any:
            y = self.bn(self.conv(x if scale is None else x * scale))
            return {"y": y, "more": [y.mean(), {"pair": None if pair is None else pair[0] + y.sum()}]}

    example = {"x": X, "scale": torch.tensor(2.0), "pair": (torch.tensor(1.0),)}
    folded, (change,) = xt.fold(evaluated(model := Named()), example, batches=[{"x": X * 3}])
    assert change.folded
    torch.testing.assert_close(folded(**example), model(**example), rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: xt.fold(nn.ReLU, X), "fold: model is type, expected a torch.nn.Module."),
        (lambda: xt.unfold(3), "unfold: model is int, expected a torch.nn.Module."),
        (lambda: xt.fold_frozen(None), "fold_frozen: model is NoneType, expected a torch.nn.Module."),
        (
            lambda: xt.fold(OneUse(), "x"),
            "fold: an input is str, expected a tensor, a tuple of arguments or a dict of keyword arguments.",
        ),
        (
            lambda: xt.fold(OneUse(), X, batches=[3]),
            "fold: an input is int, expected a tensor, a tuple of arguments or a dict of keyword arguments.",
        ),
        (
            lambda: xt.fold(nn.Sequential(nn.LazyBatchNorm2d()), X),
            "fold: layer '0' is lazy and has met no input, expected one that knows its channels. Call the model once "
            "first.",
        ),
        (
            lambda: xt.fold(OneUse(), X[:, :2]),
            "fold: the model raises an error for example_inputs: Given groups=1, weight of size [5, 3, 3, 3], expected "
            "input[2, 2, 7, 9] to have 3 channels, but got 2 channels instead.",
        ),
    ],
)
def test_bad_input_is_one_sentence(call: Any, message: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        call()
    assert str(caught.value) == message


def test_unfold_refuses_what_would_be_lost_and_changes_nothing() -> None:
    folded, changes = xt.fold(evaluated(TwoConvolutions(nn.Conv2d(3, 5, 3))), X)
    with torch.no_grad():
        folded.other.bias[1] += 1
    before = state_bits(folded)
    with pytest.raises(ArgumentError, match=r"unfold: other.bias is not what `fold` made, so that a change"):
        xt.unfold(folded, changes)
    assert norms_in(folded) == 0
    assert all(torch.equal(folded.state_dict()[name], value) for name, value in before.items())


def test_unfold_refuses_another_models_changes() -> None:
    _, changes = xt.fold(evaluated(TwoConvolutions(nn.Conv2d(3, 5, 3))), X)
    with pytest.raises(
        ArgumentError, match=r"unfold: the model has no layer 'conv'. Pass the changes that `fold`"
    ):
        xt.unfold(nn.Sequential(nn.Conv2d(3, 5, 3)), changes)


def test_unfold_twice_is_refused() -> None:
    folded, changes = xt.fold(evaluated(model := OneUse()), X)
    xt.unfold(folded, changes)
    with pytest.raises(ArgumentError, match=r"unfold: conv.weight is not what `fold` made"):
        xt.unfold(folded, changes)
    assert torch.equal(folded(X), copy.deepcopy(model)(X))


def test_a_compiled_model_is_verified_without_its_graph() -> None:
    """Nothing is compiled, and the copy is compiled as the model was."""
    calls = []

    def backend(graph: Any, inputs: Any) -> Any:
        calls.append(graph)
        return graph

    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval()
    x = torch.randn(2, 3, 5, 5)
    small, changes = xt.fold(torch.compile(model, backend=backend), x)
    assert [change.folded for change in changes] == [True]
    assert not calls
    torch.testing.assert_close(small(x), model(x), rtol=1e-4, atol=1e-5)
    assert calls
