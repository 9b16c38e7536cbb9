"""xt.fold_frozen: outputs and all gradients are those of the unfolded layers, differentiated by autograd in float64."""

import copy
import pickle
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from models import OneUse, evaluated, numbers, state_bits
from torch import Tensor, nn

import xhat.torch as xt

SIZES = {1: (11,), 2: (7, 9), 3: (5, 6, 7)}
BN = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
LAYERS: dict[str, tuple[Any, int, tuple[int, ...]]] = {
    f"{kind.__name__} {options}": (lambda kind=kind, o=options: kind(4, 6, 3, **o), k, (2, 4, *SIZES[k]))
    for k, kinds in enumerate(
        ((nn.Conv1d, nn.ConvTranspose1d), (nn.Conv2d, nn.ConvTranspose2d), (nn.Conv3d, nn.ConvTranspose3d)),
        start=1,
    )
    for kind in kinds
    for options in ({}, {"groups": 2, "bias": False}, {"stride": 2, "padding": 1})
}
LAYERS["Linear"] = (lambda: nn.Linear(7, 6), 1, (5, 7))
LAYERS["Linear without bias"] = (lambda: nn.Linear(7, 6, bias=False), 1, (5, 7))


def gradients(model: nn.Module, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """y, and the gradients of a loss of it with respect to x and all parameters."""
    leaf = x.clone().requires_grad_()
    model.zero_grad(set_to_none=True)
    y = model(leaf)
    (y * numbers("loss", *y.shape, dtype=y.dtype)).sum().backward()
    assert leaf.grad is not None
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return y.detach(), found | {"x": leaf.grad}


def check(frozen: nn.Module, x: Tensor, into: list[tuple[str, ...]], tolerance: float = 1e-12) -> None:
    """The folded model against the same model unfolded, in float64."""
    folded, changes = xt.fold_frozen(copy.deepcopy(frozen))
    assert [c.into for c in changes] == into, changes
    y, expected = gradients(copy.deepcopy(frozen).double(), x.double())
    y_, found = gradients(folded, x)
    assert found.keys() == expected.keys()
    for a, b in ((y_, y), *((found[name], expected[name]) for name in expected)):
        assert float((a.double() - b).norm()) <= tolerance * float(b.norm())


def frozen(layer: nn.Module, norm: nn.Module) -> nn.Module:
    """In training mode, with the batch norm in evaluation."""
    model = evaluated(nn.Sequential(layer, norm)).train()
    norm.eval()
    found: nn.Module = model
    return found


@pytest.mark.parametrize(("layer", "k", "shape"), LAYERS.values(), ids=LAYERS)
def test_all_gradients_are_exact(layer: Any, k: int, shape: tuple[int, ...]) -> None:
    model, x = frozen(layer(), BN[k](6)), numbers("frozen", *shape, dtype=torch.float64)
    check(model.double(), x, [("0",)])


@pytest.mark.parametrize("activation", [None, "relu", ("leaky_relu", 0.2), "silu"], ids=str)
@pytest.mark.parametrize("residual", [False, True], ids=["alone", "with a residual"])
def test_our_frozen_layer_with_its_activation_and_residual(activation: Any, residual: bool) -> None:
    class Block(OneUse):
        def __init__(self) -> None:
            super().__init__()
            self.bn = xt.BatchNorm2d(5, activation=activation)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.bn(y, residual=x.repeat(1, 2, 1, 1)[:, :5, 1:-1, 1:-1]) if residual else self.bn(y)

    model = xt.freeze(evaluated(Block()).train(), affine=False).double()
    check(model, numbers("residual", 2, 3, 7, 9, dtype=torch.float64), [("conv",)])


def test_frozen_parameters_have_no_gradient() -> None:
    model = xt.freeze(xt.convert(evaluated(OneUse()).train())[0]).double()
    x = numbers("affine", 2, 3, 7, 9, dtype=torch.float64)
    check(model, x, [("conv",)])
    _, found = gradients(xt.fold_frozen(model)[0], x)
    assert set(found) == {"conv.weight", "conv.bias", "x"}


def test_float32_is_as_exact_as_without_the_fold() -> None:
    check(frozen(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)), numbers("float32", 2, 4, 7, 9), [("0",)], 1e-6)


def test_steps_of_an_optimizer_are_those_of_the_unfolded_model() -> None:
    plain = frozen(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)).double()
    folded, _ = xt.fold_frozen(copy.deepcopy(plain))
    for model in (plain, folded):
        optimizer = torch.optim.SGD(model.parameters(), 0.01, momentum=0.9, weight_decay=0.1)
        for k in range(3):
            gradients(model, numbers(f"step {k}", 2, 4, 7, 9, dtype=torch.float64))
            optimizer.step()
    assert list(folded.state_dict()) == list(plain.state_dict())
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(folded.state_dict()[name], value, rtol=1e-11, atol=1e-11)


def test_a_layer_that_is_trained_again_is_computed_as_always() -> None:
    plain = frozen(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)).double()
    folded, _ = xt.fold_frozen(copy.deepcopy(plain))
    x = numbers("again", 2, 4, 7, 9, dtype=torch.float64)
    for _ in range(2):
        assert torch.equal(folded.train()(x), plain.train()(x))
    assert torch.equal(folded[1].running_mean, plain[1].running_mean)
    torch.testing.assert_close(folded.eval()(x), plain.eval()(x), rtol=1e-12, atol=1e-12)


def test_a_linear_layer_over_more_dimensions_is_computed_as_always() -> None:
    plain = frozen(nn.Linear(7, 5), nn.BatchNorm1d(5)).double()
    folded, _ = xt.fold_frozen(copy.deepcopy(plain))
    x = numbers("middle", 3, 5, 7, dtype=torch.float64)
    assert torch.equal(folded(x), plain(x))


def saved_bytes(model: nn.Module, x: Tensor) -> int:
    """The memory that autograd keeps for the backward pass, each storage once, without the parameters'."""
    parameters = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, Tensor] = {}

    def pack(t: Tensor) -> Tensor:
        kept[t.untyped_storage().data_ptr()] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = model(x)
    y.sum().backward()
    return sum(t.untyped_storage().nbytes() for pointer, t in kept.items() if pointer not in parameters)


def test_the_batch_norms_input_is_not_kept() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.BatchNorm2d(6)
    )
    model = evaluated(model).train()
    model[1].eval(), model[4].eval()
    folded, _ = xt.fold_frozen(copy.deepcopy(model))
    x = numbers("memory", 8, 4, 40, 40)
    outputs = 8 * 6 * 4 * (38 * 38 + 36 * 36)
    saved = saved_bytes(model, x) - saved_bytes(folded, x)
    assert outputs * 0.9 <= saved <= outputs


def test_the_folded_weight_is_not_kept_either() -> None:
    plain = frozen(nn.Conv2d(40, 50, 3), nn.BatchNorm2d(50))
    folded, _ = xt.fold_frozen(copy.deepcopy(plain))
    x = numbers("weight", 1, 40, 9, 9)
    assert saved_bytes(folded, x) <= saved_bytes(plain, x)


@pytest.mark.parametrize("affine", [True, False], ids=["affine", "affine frozen"])
def test_a_weight_that_changes_before_the_backward_pass_is_an_error(affine: bool) -> None:
    folded, _ = xt.fold_frozen(frozen(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)))
    folded[1].requires_grad_(affine)
    y = folded(numbers("changed", 2, 4, 7, 9).requires_grad_())
    with torch.no_grad():
        folded[0].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("layer", [lambda: nn.Conv2d(4, 6, 3), lambda: nn.ConvTranspose2d(4, 6, 3, groups=2)])
def test_second_derivatives_are_exact(layer: Any) -> None:
    plain = frozen(layer(), nn.BatchNorm2d(6)).double()
    folded, _ = xt.fold_frozen(copy.deepcopy(plain))
    found = []
    for model in (plain, folded):
        x = numbers("second", 2, 4, 5, 6, dtype=torch.float64).requires_grad_()
        (g,) = torch.autograd.grad(torch.tanh(model(x)).sum(), x, create_graph=True)
        found.append(torch.autograd.grad(g.square().sum(), (x, *model.parameters())))
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-11, atol=1e-11)


def test_transforms_of_torch_func_and_compile() -> None:
    plain = frozen(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)).double()
    folded, _ = xt.fold_frozen(copy.deepcopy(plain))
    x = numbers("func", 3, 4, 5, 6, dtype=torch.float64)

    def loss(model: nn.Module, parameters: Any, x: Tensor) -> Tensor:
        return torch.tanh(torch.func.functional_call(model, parameters, (x[None],))).sum()

    single = [
        torch.func.vmap(torch.func.grad(lambda p, x, m=m: loss(m, p, x)), (None, 0))(
            dict(m.named_parameters()), x
        )
        for m in (plain, folded)
    ]
    for name, expected in single[0].items():
        torch.testing.assert_close(single[1][name], expected, rtol=1e-11, atol=1e-11)
    compiled = torch.compile(folded, backend="aot_eager", fullgraph=True)
    for a, b in zip(gradients(compiled, x)[1].values(), gradients(plain, x)[1].values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_autocast() -> None:
    plain = frozen(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6))
    folded, _ = xt.fold_frozen(copy.deepcopy(plain))
    x = numbers("autocast", 2, 4, 7, 9)
    expected = gradients(plain, x)[1]
    with torch.autocast("cpu", torch.bfloat16):
        found = gradients(folded, x)[1]
    for name, value in expected.items():
        assert float((found[name] - value).norm()) <= 0.02 * float(value.norm()), name


def test_copies_and_pickles_are_folded_too_and_unfold_undoes_it() -> None:
    plain = frozen(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6))
    before, x = state_bits(plain), numbers("copies", 2, 4, 7, 9)
    folded, _ = xt.fold_frozen(copy.deepcopy(plain))
    for again in (copy.deepcopy(folded), pickle.loads(pickle.dumps(folded))):
        assert "folded" in repr(again)
        with torch.no_grad():
            again[1].weight.mul_(2)  # the copy has its own layers
        assert not torch.equal(again(x), folded(x))
        again[1].train()
        again(x)
    xt.unfold(folded)
    assert [type(m) for m in folded] == [nn.Conv2d, nn.BatchNorm2d] and repr(folded) == repr(plain)
    assert all(torch.equal(folded.state_dict()[name], value) for name, value in before.items())
    assert torch.equal(folded(x), plain(x)) and vars(folded[0]).keys() == vars(plain[0]).keys()


def test_twice_is_once() -> None:
    folded, _ = xt.fold_frozen(frozen(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)))
    again, changes = xt.fold_frozen(folded)
    assert again is folded and [c.into for c in changes] == [("0",)]
    assert str(changes[0]) == "1: torch.nn.BatchNorm2d -> 0"


def test_it_can_be_folded_for_good_afterwards() -> None:
    folded, _ = xt.fold_frozen(frozen(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)))
    final, changes = xt.fold(folded.eval(), x := numbers("good", 2, 4, 7, 9))
    assert [c.into for c in changes] == [("0",)] and type(final[0]) is nn.Conv2d
    torch.testing.assert_close(final(x), folded(x), rtol=1e-5, atol=1e-5)


def test_what_is_not_frozen_or_not_alone_is_left_with_the_reason() -> None:
    class Branching(OneUse):
        def forward(self, x: Tensor) -> Tensor:
            return self.bn(self.conv(F.relu(x) if x.sum() > 0 else x))

    trained, example = OneUse(), numbers("left", 2, 3, 7, 9).abs()
    assert "it is in training mode" in str(xt.fold_frozen(trained)[1][0].reason)
    assert "more than" not in str(xt.fold_frozen(evaluated(OneUse()))[1][0].reason)
    model = evaluated(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 5, 3)))
    assert "one batch norm goes into the one layer before it" in str(xt.fold_frozen(model)[1][0].reason)
    _, (change,) = xt.fold_frozen(evaluated(Branching()))
    assert "example_inputs let torch.export try" in str(change.reason)
    _, (change,) = xt.fold_frozen(evaluated(Branching()), example_inputs=example)
    assert str(change.reason).startswith("no graph of the model can be recorded (torch.fx:")
