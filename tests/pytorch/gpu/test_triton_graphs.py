"""What is recorded for a CUDA tensor, by fake tensors: there need be no GPU."""

from collections.abc import Iterator

import pytest
import torch
from requirements_of_triton import requires_triton
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

import xhat.torch as xt
from xhat.torch import engines

pytestmark = requires_triton


@pytest.fixture
def fake() -> Iterator[FakeTensorMode]:
    with FakeTensorMode() as mode:
        yield mode


def operators(training: bool) -> set[str]:
    layer = xt.BatchNorm2d(8, activation="relu", device="cuda").train(training).requires_grad_(False)
    x = torch.empty(4, 8, 6, 4, device="cuda")
    graph = make_fx(lambda x: layer(x))(x)
    return {str(node.target) for node in graph.graph.nodes if node.op == "call_function"}


def test_our_operator_is_recorded_where_triton_is_switched_on(
    monkeypatch: pytest.MonkeyPatch, fake: FakeTensorMode
) -> None:
    monkeypatch.setattr(engines, "switched_on", True)
    assert "xhat.batch_norm.default" in operators(training=True)


def test_torchs_operations_are_recorded_where_it_is_not(
    monkeypatch: pytest.MonkeyPatch, fake: FakeTensorMode
) -> None:
    monkeypatch.setattr(engines, "switched_on", False)
    assert not any(name.startswith("xhat.batch_norm") for name in operators(training=True))


def test_an_evaluation_is_recorded_as_operations_that_a_compiler_fuses(
    monkeypatch: pytest.MonkeyPatch, fake: FakeTensorMode
) -> None:
    monkeypatch.setattr(engines, "switched_on", True)
    assert not any(name.startswith("xhat.") for name in operators(training=False))
