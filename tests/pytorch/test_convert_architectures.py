"""Real architectures: what is converted, and that training and evaluation give the same results.

Three claims, each with a reference that is accurate enough:

- In float64 a converted network is the same function: outputs, gradients, running statistics and three steps of
  training agree to 1e-9, far below any float32 effect, so that a wrong fusion shows.
- In float32, against the float64 network: outputs and statistics within 1e-5, and so are the gradients of the
  median parameter. The largest is not held to that: a ReLU whose input rounds to the other side of 0 changes a
  gradient by a finite amount, in torch's layers as in ours.
- Reverted, a network is torch's again, bit by bit in its state.
"""

import copy
import importlib.util
import os
from typing import Any

import pytest
import torch
from architectures import network
from torch import Tensor, nn

import xhat.torch as xt

needed = [name for name in ("timm", "segmentation_models_pytorch") if not importlib.util.find_spec(name)]
pytestmark = pytest.mark.skipif(
    bool(needed) and not os.environ.get("CI"),
    reason=f"outside of continuous integration, {needed} may be missing",
)

# The number of batch norms, and of those that are fused with an activation, alone or behind a sum.
COUNTS = {
    "resnet18": (20, {"relu": 9, "add, relu": 8}),
    "densenet121": (121, {"relu": 121}),
    "efficientnet_b0": (49, {"silu": 33}),
    "mobilenetv3_small_100": (34, {"relu": 5}),
    "regnety_002": (44, {"relu": 27}),
    "unet": (30, {"relu": 19, "add, relu": 8}),
}
SMALL = (4, 3, 64, 64)


def relative(found: Tensor, expected: Tensor, floor: float = 0.0) -> float:
    """||found - expected|| / max(||expected||, floor per element)."""
    scale = max(float(expected.norm()), floor * expected.numel() ** 0.5, 1e-300)
    return float((found.double() - expected).norm()) / scale


def images(seed: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*SMALL, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def loss(y: Tensor) -> Tensor:
    weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return (y * weights.to(y.dtype)).sum()


def gradients(model: nn.Module, seed: int = 1) -> tuple[Tensor, dict[str, Tensor]]:
    """y in training, and the gradient of each parameter."""
    model.train().zero_grad(set_to_none=True)
    y = model(images(seed, next(model.parameters()).dtype))
    loss(y).backward()
    return y.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def errors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> list[float]:
    """Relative errors, sorted. A gradient that should be 0 (a bias before a batch norm) is relative to the others."""
    typical = float(torch.cat([g.flatten() for g in expected.values()]).square().mean().sqrt())
    return sorted(relative(found[name], g, 1e-3 * typical) for name, g in expected.items())


def statistics(model: nn.Module) -> dict[str, Tensor]:
    return {name: b.double() for name, b in model.named_buffers()}


@pytest.mark.parametrize("name", COUNTS)
def test_an_architecture_is_converted_trains_on_and_is_reverted(name: str) -> None:
    torchs = network(name)
    state = {key: value.clone() for key, value in torchs.state_dict().items()}
    single, changes = xt.convert(copy.deepcopy(torchs))
    _check_changes(name, changes)
    oracle = torchs.double()
    ours, _ = xt.convert(copy.deepcopy(oracle))
    optimizers = [torch.optim.SGD(m.parameters(), lr=1e-4, momentum=0.9) for m in (ours, oracle)]
    for i in range(2):
        (y, found), (expected_y, expected) = gradients(ours, i), gradients(oracle, i)
        if i == 0:
            _check_single(single, expected_y, expected, statistics(oracle))
        assert relative(y, expected_y) < 1e-9
        assert found.keys() == expected.keys() and errors(found, expected)[-1] < 1e-9
        for optimizer in optimizers:
            optimizer.step()
    for key, value in oracle.state_dict().items():
        assert relative(ours.state_dict()[key], value.double()) < 1e-9, key
    with torch.no_grad():
        assert relative(ours.eval()(images(3, torch.float64)), oracle.eval()(images(3, torch.float64))) < 1e-9
    _check_reverted(name, state)


def _check_changes(name: str, changes: list[xt.Change]) -> None:
    layers, fused = COUNTS[name]
    found: dict[str, int] = {}
    for change in changes:
        assert change.converted
        if change.fused:
            found[change.fused] = found.get(change.fused, 0) + 1
    assert (len(changes), found) == (layers, fused)


def _check_single(
    single: nn.Module, y: Tensor, expected: dict[str, Tensor], buffers: dict[str, Tensor]
) -> None:
    """The float32 network against the float64 one, after one step."""
    found_y, found = gradients(single, 0)
    assert relative(found_y, y) < 1e-5
    wrong = errors(found, expected)
    assert wrong[len(wrong) // 2] < 1e-5
    for key, value in statistics(single).items():
        assert relative(value, buffers[key]) < 1e-5, key


def _check_reverted(name: str, state: dict[str, Any]) -> None:
    model = xt.revert(xt.convert(network(name))[0])
    kinds = [type(m) for m in network(name).modules()]
    assert [type(m) for m in model.modules()] == kinds
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_what_is_fused_in_a_real_network_is_listed() -> None:
    changes = {c.path: str(c) for c in xt.convert(network("regnety_002"))[1]}
    kinds = "timm.layers.norm_act.BatchNormAct2d -> xhat.torch.convert.BatchNormAct2d"
    assert changes["stem.bn"] == f"stem.bn: {kinds}, fused with relu"
    assert changes["s1.b1.conv3.bn"] == f"s1.b1.conv3.bn: {kinds}"
