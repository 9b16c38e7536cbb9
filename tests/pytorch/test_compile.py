"""torch.compile: one graph, the numbers of the layer outside of it, and the same state afterwards.

Most graphs are run as they are recorded (aot_eager), which is where things go wrong; generated code is the same calls,
and is looked at once for training and once for evaluation.
"""

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from beside import CHANNELS, WARNS, X, layers, same
from definition import NO_BIAS
from torch import Tensor, nn
from torch.func import grad, jvp, vmap
from torch.utils.checkpoint import checkpoint

import xhat.torch as xt

pytestmark = [
    WARNS,
    pytest.mark.filterwarnings(
        "ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"
    ),  # torch's look
]

MASK = torch.linspace(0, 2, 40, dtype=torch.float64).reshape(4, 1, 2, 5)


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    """Without the graphs of the test before, whose shapes would become symbols here."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def step(run: Callable[..., Tensor], layer: nn.Module, x: Tensor, **given: Tensor) -> list[Tensor]:
    """y, the gradients and the buffers of one training step."""
    leaf = x.detach().requires_grad_()
    layer.zero_grad()
    y = run(leaf, **given)
    (y.double() ** 3).sum().backward()
    assert leaf.grad is not None
    return [y, leaf.grad, *(p.grad.clone() for p in layer.parameters() if p.grad is not None),
            *(b.clone() for b in layer.buffers())]  # fmt: skip


def agrees(
    layer: nn.Module, *batches: Tensor, backend: str = "aot_eager", tolerance: float = 1e-9, **given: Any
) -> None:
    """A compiled layer beside a copy of it that is not, over some batches."""
    direct = copy.deepcopy(layer)
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    for x in batches:
        got, expected = step(compiled, layer, x, **given), step(direct, direct, x, **given)
        torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


OPTIONS: dict[str, dict[str, Any]] = {
    "defaults": {},
    "momentum=None": {"momentum": None},
    "no statistics": {"track_running_stats": False},
    "not affine": {"affine": False, "correction": 1},
    "silu, skip": {"activation": "silu", "nonfinite": "skip"},
    "leaky_relu, raise": {"activation": ("leaky_relu", 0.1), "nonfinite": "raise", **NO_BIAS},
}


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("options", OPTIONS)
def test_every_option_is_one_graph(options: str, training: bool) -> None:
    layer = xt.BatchNorm2d(CHANNELS, dtype=torch.float64, **OPTIONS[options]).train(training)
    agrees(layer, X, X.exp())


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_residual_and_mask(training: bool) -> None:
    layer = xt.BatchNorm2d(CHANNELS, dtype=torch.float64, activation="relu").train(training)
    agrees(layer, X, X.exp(), residual=X.sin(), mask=MASK)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_generated_code(training: bool) -> None:
    """In float32, as models are; an evaluation is fused with what follows it."""
    layer = xt.BatchNorm2d(CHANNELS, momentum=None, activation="relu").train(training)
    agrees(layer, X.float(), X.float().exp(), backend="inductor", tolerance=2e-5, residual=X.float().sin())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_sixteen_bits_and_channels_last(training: bool, dtype: torch.dtype) -> None:
    layer = xt.BatchNorm2d(CHANNELS).train(training)
    x = X.to(dtype).to(memory_format=torch.channels_last)
    agrees(layer, x, tolerance=1e-5 if dtype == torch.float32 else 0.02)
    assert torch.compile(layer, fullgraph=True, backend="aot_eager")(x).stride() == x.stride()


def test_a_batch_of_any_size() -> None:
    """Also an empty one, which is a graph of its own, and moves nothing."""
    layer, theirs = layers()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager", dynamic=True)
    for n in (4, 2, 3, 0, 1):
        got, expected = step(compiled, layer, X[:n]), step(layer, layer, X[:n])
        same(got[:-3], expected[:-3])
    assert layer.num_batches_tracked == 8
    assert theirs.num_batches_tracked == 0


def test_torch_cannot_average_over_batches_in_a_graph() -> None:
    """momentum=None: ours can, see above."""
    _, theirs = layers(momentum=None)
    with pytest.raises(Exception, match="data-dependent"):
        torch.compile(theirs, fullgraph=True, backend="aot_eager")(X)


@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
@pytest.mark.parametrize("inside", [True, False], ids=["in the graph", "around the graph"])
def test_a_recomputed_graph_counts_once(reentrant: bool, inside: bool) -> None:
    layer, theirs = layers()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")

    def model(x: Tensor) -> Tensor:
        return checkpoint(layer if inside else compiled, x.sin(), use_reentrant=reentrant)

    run = torch.compile(model, backend="aot_eager") if inside else model
    same(step(run, layer, X), step(lambda x: theirs(x.sin()), theirs, X))
    assert layer.num_batches_tracked == 1


def test_a_transform_in_a_graph() -> None:
    layer, theirs = layers(track_running_stats=False)
    for transform in (
        lambda f: lambda x: grad(lambda a: f(a).pow(3).sum())(x),
        lambda f: lambda x: jvp(f, (x,), (x.sin(),))[1],
        lambda f: lambda x: vmap(lambda a: f(a))(torch.stack((x, x.exp()))),
    ):
        compiled = torch.compile(transform(layer), fullgraph=True, backend="aot_eager")
        same(compiled(X), transform(theirs)(X))


@pytest.mark.parametrize(
    ("x", "error", "sentence"),
    [
        (X[:1, :, :1, :1], ValueError, r"BatchNorm2d: .*more than 1 value per channel"),
        (X[:, :2], RuntimeError, r"BatchNorm2d: .*expected \(2,\)"),
        (X[:, 0], ValueError, r"BatchNorm2d: .*expected 4D input"),
    ],
    ids=["one value", "channels", "dimensions"],
)
@pytest.mark.skipif(
    not NO_BIAS, reason="before 2.13, torch.compile fails where an error is raised `from None`"
)
def test_a_mistake_says_the_same(x: Tensor, error: type[Exception], sentence: str) -> None:
    layer = xt.BatchNorm2d(CHANNELS, dtype=torch.float64)
    with pytest.raises(error, match=sentence):
        torch.compile(layer, backend="aot_eager")(x)


def test_a_policy_that_raises_does_so_in_a_graph() -> None:
    layer = xt.BatchNorm2d(CHANNELS, dtype=torch.float64, nonfinite="raise")
    x = X.clone()
    x[0, 1, 0, 0] = torch.inf
    with pytest.raises(ValueError, match="in channel 1 of 3"):
        torch.compile(layer, fullgraph=True, backend="aot_eager")(x)
    assert layer.num_batches_tracked == 0 and torch.equal(
        layer.running_mean, torch.zeros_like(layer.running_mean)
    )


def test_what_a_compiled_graph_has_no_derivative_for_is_refused() -> None:
    """By torch: a gradient of the gradient, and a tangent."""
    layer = xt.BatchNorm2d(CHANNELS, dtype=torch.float64)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = X.clone().requires_grad_()
    gradient = torch.autograd.grad(compiled(x).pow(3).sum(), x, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        gradient.sum().backward()
    with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match=r"jvp|dual tensor"):
        compiled(torch.autograd.forward_ad.make_dual(X, X))
