"""`adapt`: evaluation by merged statistics, the batches that are remembered, gradients, and what stays."""

import copy
from typing import Any

import pytest
import torch
from definition import Problem, definition, generator, relative
from torch import Tensor, nn

import xhat.torch as xt
from xhat.errors import ArgumentError


def layer() -> Any:
    g = generator("layer")
    made = xt.BatchNorm1d(4).double().eval()
    for t in (made.running_mean, made.weight, made.bias):
        nn.init.normal_(t, generator=g)
    nn.init.uniform_(made.running_var, 0.5, 2, generator=g)
    return made


def data(*sizes: int) -> list[Tensor]:
    g = generator("data")
    return [torch.randn(n, 4, 3, generator=g, dtype=torch.float64) * 2 + 3 + k for k, n in enumerate(sizes)]


def together(parts: list[tuple[float, Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Mean and variance of parts with counts, by the definition."""
    n = sum(part[0] for part in parts)
    mean: Any = sum(m * mu for m, mu, _ in parts) / n
    var: Any = sum(m * (v + (mu - mean) ** 2) for m, mu, v in parts) / n
    return mean, var


def of(x: Tensor) -> tuple[float, Tensor, Tensor]:
    found = definition(Problem(x))
    return float(len(x)), found.mean, found.var


@pytest.mark.parametrize("prior", [0, 5])
@pytest.mark.parametrize("mode", ["blend", "pooled", "exponential"])
def test_statistics_are_merged_with_the_batches(mode: str, prior: int) -> None:
    made, batches = layer(), data(2, 6, 3)
    before = copy.deepcopy(made.state_dict())
    old = (float(prior), made.running_mean.clone(), made.running_var.clone())
    adaptation = xt.adapt(made, mode, prior=prior, momentum=0.3)
    for again in range(2):
        seen: list[tuple[float, Tensor, Tensor]] = []
        for x in batches:
            y = made(x)
            seen.append(of(x))
            parts = [old, seen[-1]] if mode == "blend" else [old, *seen]
            if mode == "exponential":
                weights = [0.7 ** len(seen), *(0.3 * 0.7 ** (len(seen) - 1 - k) for k in range(len(seen)))]
                parts = [(w, mu, v) for w, (_, mu, v) in zip(weights, parts, strict=True)]
            expected = definition(Problem(x, made.weight, made.bias), together(parts)).y
            assert relative(y, expected) < 1e-13, again
        adaptation.reset()
    assert all(torch.equal(v, before[k]) for k, v in made.state_dict().items())
    adaptation.remove()
    plain = definition(Problem(batches[0], made.weight, made.bias), (old[1], old[2])).y
    assert relative(made(batches[0]), plain) < 1e-13
    assert relative(y, plain[:1].expand_as(y)) > 0.1


@pytest.mark.parametrize("prior", [0, 5])
def test_gradients_go_through_the_batch(prior: int) -> None:
    """To the parameters, and through the statistics to what is in front."""
    made, (x,) = layer(), data(6)
    x.requires_grad_()
    old = (float(prior), made.running_mean, made.running_var)
    with xt.adapt(made, prior=prior) as adaptation:
        y = made(x)
        assert [id(p) for p in adaptation.parameters()] == [id(made.weight), id(made.bias)]
    found = definition(Problem(x))
    mean, var = together([old, (6.0, found.mean, found.var)])
    expected = definition(Problem(x, made.weight, made.bias), (mean, var)).y
    inputs = (x, made.weight, made.bias)
    wanted = torch.autograd.grad((expected**3).sum(), inputs)
    for got, want in zip(torch.autograd.grad((y**3).sum(), inputs), wanted, strict=True):
        assert relative(got, want) < 1e-11


def test_a_mask_weighs_the_batch() -> None:
    made, (x,) = layer(), data(6)
    mask = torch.rand(6, 1, 3, dtype=torch.float64)
    xt.adapt(made, prior=0)
    expected = definition(Problem(x, made.weight, made.bias, mask=mask)).y
    assert relative(made(x, mask=mask), expected) < 1e-13


def test_frozen_layers_and_training_are_as_before() -> None:
    model, (x,) = nn.Sequential(layer(), layer()), data(6)
    xt.freeze(model[0])
    expected = copy.deepcopy(model)
    adaptation = xt.adapt(model, prior=0)
    assert len(list(adaptation.parameters())) == 2
    torch.testing.assert_close(model.train()(x), expected.train()(x))
    torch.testing.assert_close(model[1].running_mean, expected[1].running_mean)
    torch.testing.assert_close(model.eval()[0](x), expected.eval()[0](x))
    inner = expected[0](x)
    torch.testing.assert_close(model(x), definition(Problem(inner, model[1].weight, model[1].bias)).y)
    assert model(x[:0]).shape == (0, 4, 3)


@pytest.mark.parametrize(
    ("model", "options", "sentence"),
    [
        (layer(), {"mode": "mix"}, "mode is 'mix', expected one of 'blend', 'pooled', 'exponential'"),
        (layer(), {"prior": -1}, "prior is -1, expected a number of samples, at least 0"),
        (layer(), {"momentum": 2}, "momentum is 2, expected a number from 0 to 1"),
        (nn.BatchNorm1d(4), {}, "BatchNorm1d has no batch norm of xhat's"),
        (xt.freeze(layer()), {}, "the model has no batch norm whose running statistics may move"),
    ],
)
def test_a_mistake_gets_a_sentence(model: Any, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ArgumentError, match=f"^adapt: {sentence}"):
        xt.adapt(model, **options)


def test_a_model_is_adapted_once() -> None:
    model = nn.Sequential(layer())
    adaptation = xt.adapt(model)
    with pytest.raises(ArgumentError, match="layer '0' is adapted already"):
        xt.adapt(model)
    adaptation.remove()
    xt.adapt(model)
