"""Recorded graphs: make_fx, torch.export, torch.jit.trace, fake and meta tensors.

A graph must hold the operator or the equations, never numbers that were computed while it was recorded.
"""

import copy
import io
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from beside import CHANNELS, X, layers, same
from definition import generator
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

import xhat.torch as xt

OTHER = torch.randn(7, CHANNELS, 2, 5, generator=generator("another batch"), dtype=torch.float64)


def targets(graph: torch.fx.GraphModule) -> set[str]:
    """What a graph calls."""
    return {str(n.target) for n in graph.graph.nodes if n.op == "call_function"}


class Block(nn.Module):
    """A layer that is given a residual and a mask, for ours and for what is computed in its place."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.norm = xt.BatchNorm2d(CHANNELS, dtype=torch.float64, **options)

    def forward(self, x: Tensor) -> Tensor:
        """The weights of a batch are made from it, so that they are no constants of the graph."""
        return self.norm(x, x.sin(), x[:, :1].abs().detach())


MODELS: dict[str, Callable[[], nn.Module]] = {
    "training": lambda: layers()[0],
    "evaluation": lambda: layers(training=False)[0],
    "momentum=None": lambda: layers(momentum=None)[0],
    "mask, residual, silu": lambda: Block(activation="silu", correction=1),
    "relu, evaluation": lambda: Block(activation="relu").eval(),
    "skip": lambda: xt.BatchNorm2d(CHANNELS, nonfinite="skip", dtype=torch.float64),
}


def agrees(graph: Callable[[Tensor], Tensor], recorded: nn.Module, direct: nn.Module) -> None:
    """A graph and the module it was recorded from, twice: outputs, gradients, and the states that they leave."""
    for x in (OTHER, OTHER.exp()):
        found = []
        for run in (graph, direct):
            leaf = x.clone().requires_grad_()
            y = run(leaf)
            (y**3).sum().backward()
            found.append((y, leaf.grad))
        same(found[0], found[1])
    same(dict(recorded.named_buffers()), dict(direct.named_buffers()))


@pytest.mark.parametrize("mode", ["real", "fake", "symbolic"])
@pytest.mark.parametrize("model", MODELS)
def test_make_fx(model: str, mode: str) -> None:
    """With symbols the graph holds for another batch size; recording with real tensors is a step of its own."""
    module = MODELS[model]()
    recorded, direct = copy.deepcopy(module), copy.deepcopy(module)
    graph = make_fx(recorded, tracing_mode=mode, _allow_non_fake_inputs=True)(OTHER.sin())
    if mode == "real":
        direct(OTHER.sin())
    called = {name for name in targets(graph) if name.startswith("xhat")}
    learns = module.training
    assert called == ({"xhat.batch_norm.default", "xhat.track.default"} if learns else set())
    agrees(graph, recorded, direct)


def step(layer: nn.Module, x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    """The gradients of a loss."""
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    y = functional_call(layer, {"weight": weight}, (x,))
    return torch.autograd.grad((y**3).sum(), (x, weight))


def test_make_fx_of_a_training_step() -> None:
    """Forward and backward in one graph."""
    ours, theirs = layers()
    found = []
    for layer in (ours, theirs):
        graph = make_fx(partial(step, layer))(X, layer.weight.detach())
        if layer is ours:
            assert "xhat.batch_norm_backward.default" in targets(graph)
        found.append(
            (
                graph(OTHER[:4], torch.tensor([0.5, -2.0, 1.0], dtype=torch.float64)),
                dict(layer.named_buffers()),
            )
        )
    same(found[0], found[1])


@pytest.mark.parametrize("strict", [True, False], ids=["strict", "not strict"])
@pytest.mark.parametrize("model", MODELS)
def test_export(model: str, strict: bool) -> None:
    """For any batch size; the program can be saved and loaded, and moves the running statistics."""
    module = MODELS[model]()
    direct = copy.deepcopy(module)
    sizes = ({0: torch.export.Dim("n", min=2, max=64)},)
    program = torch.export.export(module, (X,), dynamic_shapes=sizes, strict=strict)
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    graph = torch.export.load(file).module()
    agrees_in_state(graph, direct)


def agrees_in_state(graph: nn.Module, direct: nn.Module) -> None:
    """As `agrees`, for a graph that owns the buffers which it uses."""
    for x in (OTHER, X.exp()):
        found = []
        for run in (graph, direct):
            leaf = x.clone().requires_grad_()
            y = run(leaf)
            (y**3).sum().backward()
            found.append((y, leaf.grad))
        same(found[0], found[1])
    buffers = dict(graph.named_buffers())
    for name, value in direct.named_buffers():
        if direct.training or not name.endswith("num_batches_tracked"):
            same(buffers[name], value)


@pytest.mark.filterwarnings("ignore:`torch.jit.trace")
@pytest.mark.filterwarnings("ignore:.*torch.jit.*deprecated")
@pytest.mark.parametrize("model", MODELS)
def test_jit_trace(model: str) -> None:
    """No TracerWarning: nothing was taken for a constant."""
    module = MODELS[model]()
    direct = copy.deepcopy(module)
    graph = torch.jit.trace(module, X, check_trace=False)
    direct(X)
    agrees(graph, graph, direct)


# --------------------------------------------------------------------------------------------- fake and meta tensors


@pytest.mark.parametrize("where", ["meta", "fake"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_shapes_without_numbers(where: str, training: bool) -> None:
    """y, gradients and buffers have the shapes, dtypes, strides and the device that real ones have."""
    for x in (X.float(), X.bfloat16().to(memory_format=torch.channels_last), X.float()[:, :, :, ::2]):
        for options in ({}, {"activation": "relu"}, {"affine": False}, {"momentum": None}):
            layer = xt.BatchNorm2d(CHANNELS, **options).train(training)
            data = x.detach()
            expected = described(layer, x.detach().requires_grad_())
            if where == "meta":
                got = described(copy.deepcopy(layer).to("meta"), data.to("meta").requires_grad_())
            else:
                with FakeTensorMode() as mode:
                    fake = xt.BatchNorm2d(CHANNELS, **options).train(training)
                    got = described(fake, mode.from_tensor(data).requires_grad_())
            assert got == expected


def described(layer: nn.Module, x: Tensor) -> list[Any]:
    y = layer(x)
    y.sum().backward()
    tensors = [y, x.grad, *(p.grad for p in layer.parameters()), *layer.buffers()]
    return [(t.shape, t.dtype, t.stride()) for t in tensors if t is not None]


def test_a_fake_tensor_outside_of_its_mode() -> None:
    """A subclass that knows its own way."""
    mode = FakeTensorMode()
    layer = xt.BatchNorm2d(CHANNELS, dtype=torch.float64)
    state = {k: mode.from_tensor(v) for k, v in layer.state_dict().items()}
    y = functional_call(layer, state, (mode.from_tensor(X),))
    assert type(y) is type(state["weight"]) and y.shape == X.shape
    assert layer.num_batches_tracked == 0


def test_a_mistake_in_a_graph() -> None:
    for bad, error in (
        (torch.empty(1, CHANNELS, 1, 1), "more than 1 value per channel"),
        (X[:, :2], r"expected \(2,\)"),
    ):
        with pytest.raises(ValueError, match=error):
            make_fx(xt.BatchNorm2d(CHANNELS, dtype=torch.float64))(bad)
        with pytest.raises(ValueError, match=error):
            torch.export.export(xt.BatchNorm2d(CHANNELS, dtype=torch.float64), (bad,))
