"""torch's own tools on xhat's layers and on converted models: what they do with torch's layers, or an error that says
what to do. Tools from other packages are in test_tools_of_others.
"""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from blocks import C, Residual
from comparing import made
from small_network import X, close, pair
from torch import nn
from torch.ao.quantization import fuse_modules, fuse_modules_qat, get_default_qconfig_mapping, quantize_fx
from torch.nn.utils import fusion

import xhat.torch as xt
from xhat.errors import ArgumentError, DtypeError
from xhat.torch import functional
from xhat.torch.nn import BatchNorm

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.fx.experimental import optimization
    from torch.utils import mkldnn

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def calls_of(graph: torch.fx.GraphModule) -> list[tuple[str, str, str]]:
    return [(n.op, getattr(n.target, "__name__", str(n.target)), n.name) for n in graph.graph.nodes]


# ------------------------------------------------------------------------------------------------------------- folding


def fold_linear(layer: Any) -> None:
    fusion.fuse_linear_bn_eval(nn.Linear(C, C).eval(), layer)


def fold_convolution(layer: Any) -> None:
    fusion.fuse_conv_bn_eval(nn.Conv2d(C, C, 1).eval(), layer)


def by_hand(layer: Any) -> None:
    layer.weight / torch.sqrt(layer.running_var + layer.eps)


def by_rsqrt_of_a_sum(layer: Any) -> None:
    layer.running_var.add(layer.eps).rsqrt()


def by_numpy(layer: Any) -> None:
    layer.running_var.numpy() + layer.eps


def by_a_ufunc(layer: Any) -> None:
    np.add(layer.running_var.numpy(), layer.eps)
    np.add(layer.eps, layer.running_var.numpy())


def by_a_tensor(layer: Any) -> None:
    layer.running_var + torch.tensor(layer.eps)


def by_another_way_to_a_tensor(layer: Any) -> None:
    layer.running_var + torch.as_tensor(layer.eps)


def by_the_function(layer: Any) -> None:
    nn.functional.batch_norm(X, layer.running_mean, layer.running_var, eps=layer.eps)


def by_another_layer(layer: Any) -> None:
    nn.BatchNorm2d(C, eps=layer.eps).eval()(X)


def by_torchs_conversion(layer: Any) -> None:
    nn.SyncBatchNorm.convert_sync_batchnorm(layer)(X)


def by_mkldnn(layer: Any) -> None:
    if torch.backends.mkldnn.is_available():
        mkldnn.to_mkldnn(nn.Sequential(nn.Conv2d(C, C, 1), layer).eval())
    elif layer.activation is not None:
        pytest.skip("this build of torch has no MKL-DNN")


@pytest.mark.parametrize(
    "tool",
    [fold_linear, fold_convolution, by_hand, by_rsqrt_of_a_sum, by_numpy, by_a_ufunc, by_a_tensor,
     by_another_way_to_a_tensor, by_the_function, by_another_layer, by_torchs_conversion, by_mkldnn],
)  # fmt: skip
@pytest.mark.parametrize("activation", ["relu", "silu", ("leaky_relu", 0.2)], ids=str)
def test_an_activation_in_a_layer_is_noticed_by_whoever_computes_the_layer(
    tool: Callable[..., None], activation: Any
) -> None:
    layer = xt.BatchNorm2d(C).eval()
    tool(layer)
    layer.activation = activation
    with pytest.raises(
        ArgumentError, match=r"BatchNorm2d: eps is added to a variance.*layer\.activation = None"
    ):
        tool(layer)
    layer.activation = None
    tool(layer)


def test_torch_drops_an_activation_without_the_error() -> None:
    """What the test above is about: the number alone, and a fold that is wrong."""
    layer, convolution = xt.BatchNorm2d(C, activation="relu").eval(), nn.Conv2d(C, C, 1).eval()
    plain = xt.BatchNorm2d(C, eps=float(layer.eps)).eval()
    folded = fusion.fuse_conv_bn_eval(convolution, plain)
    assert not torch.allclose(folded(X), layer(convolution(X)), atol=0.1)


def test_eps_of_a_layer_with_an_activation_is_still_a_number_to_read() -> None:
    layer = xt.BatchNorm2d(C, eps=1e-3, activation="relu")
    assert layer.eps == 1e-3 and 1e-4 < layer.eps <= 1e-2 and f"{layer.eps:g} {layer.eps}" == "0.001 0.001"
    assert np.float64(1e-3) == layer.eps and np.float64(1e-2) > layer.eps
    assert np.less([1e-4, 1e-2], layer.eps).tolist() == [True, False] and np.float64(1e-2) != layer.eps
    assert "eps=0.001" in repr(layer) and {layer.eps: 1}[1e-3] == 1
    other = xt.BatchNorm2d(C, eps=layer.eps)
    assert type(other.eps) is float and other.eps == 1e-3
    other.eps = layer.eps
    assert type(vars(other)["eps"]) is float
    assert copy.deepcopy(layer).eps == 1e-3


@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_a_layer_of_a_converted_model_is_folded_as_torchs(kind: Any) -> None:
    theirs = made(lambda: nn.Sequential(kind(C, C, 3, padding=1), nn.BatchNorm2d(C), nn.ReLU())).float()
    theirs(X)
    ours = xt.convert(copy.deepcopy(theirs))[0].eval()
    theirs.eval()
    ours[0] = fusion.fuse_conv_bn_eval(ours[0], ours[1], transpose=kind is nn.ConvTranspose2d)
    ours[1] = nn.Identity()
    close(ours, theirs)


def test_a_converted_model_becomes_one_of_mkldnn() -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this build of torch has no MKL-DNN")
    theirs = made(lambda: nn.Sequential(nn.Conv2d(C, C, 3), nn.BatchNorm2d(C), nn.ReLU())).float()
    theirs(X)
    ours = xt.convert(copy.deepcopy(theirs))[0].eval()
    x = X.to_mkldnn()
    expected = mkldnn.to_mkldnn(theirs.eval())(x).to_dense()
    torch.testing.assert_close(mkldnn.to_mkldnn(ours)(x).to_dense(), expected)
    with pytest.raises(
        DtypeError, match=r"input is an MKL-DNN tensor, expected a strided one. Pass input.to_dense\(\)"
    ):
        xt.BatchNorm2d(C)(x)


@pytest.mark.parametrize("behind", [nn.Identity, nn.ReLU])
def test_a_layer_is_not_scripted_and_its_reverted_copy_is(behind: Any) -> None:
    theirs = nn.Sequential(nn.Conv2d(C, C, 1), nn.BatchNorm2d(C), behind())
    model = xt.convert(theirs.float())[0].eval()
    with pytest.raises(ArgumentError) as raised:
        torch.jit.script(model)
    assert str(raised.value) == (
        "BatchNorm2d: torch.jit.script compiles the source of a module, and cannot read this layer's. "
        "Use torch.jit.trace, or call xhat.torch.revert(model) first."
    )
    plain = xt.revert(copy.deepcopy(model))
    torch.testing.assert_close(torch.jit.script(plain)(X), model(X))


# ------------------------------------------------------------------------------------------------------------ torch.fx


@pytest.mark.parametrize("training", [True, False])
def test_a_graph_of_torch_fx_has_the_nodes_of_the_original(training: bool) -> None:
    ours, theirs = pair()
    graphs = [torch.fx.symbolic_trace(m.train(training)) for m in (ours, theirs)]
    assert calls_of(graphs[0]) == calls_of(graphs[1])
    assert ("call_module", "blocks.0.relu", "blocks_0_relu_1") in calls_of(graphs[0])
    close(*graphs)


def test_a_list_of_proxies_is_traced_too() -> None:
    """DenseNet's layers take a list."""

    class Joined(Residual):
        def forward(self, x):
            return self.relu(self.bn1(torch.cat(x, 1)))

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Joined()

        def forward(self, x):
            return self.inner([x, x[:, :0]])

    theirs = Outer().eval()
    ours, changes = xt.convert(copy.deepcopy(theirs))
    assert changes[0].fused == "relu"
    assert calls_of(torch.fx.symbolic_trace(ours)) == calls_of(torch.fx.symbolic_trace(theirs))


def test_outside_of_a_trace_the_calls_are_fused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else the tests above would pass without any fusion."""
    ours, _ = pair()
    torch.fx.symbolic_trace(ours)
    seen: list[Any] = []

    def normalized(*arguments: Any) -> Any:
        seen.append(arguments[3])
        return functional.normalized(*arguments)

    monkeypatch.setattr(BatchNorm, "_normalized", staticmethod(normalized))
    ours(X)
    assert seen == ["silu", "relu", "relu", "relu", None, "relu", "relu"]


QUANTIZERS: dict[str, Callable[[nn.Module], Any]] = {
    "fuse_fx": lambda m: quantize_fx.fuse_fx(m.eval()),
    "prepare_fx": lambda m: quantize_fx.prepare_fx(m.eval(), get_default_qconfig_mapping("x86"), (X,)),
    "prepare_qat_fx": lambda m: quantize_fx.prepare_qat_fx(
        m.train(), get_default_qconfig_mapping("x86"), (X,)
    ),
    "optimization.fuse": lambda m: optimization.fuse(m.eval()),
}


@pytest.mark.parametrize("tool", QUANTIZERS)
def test_a_tool_that_knows_exact_classes_is_not_let_pass_a_layer_over(tool: str) -> None:
    ours, theirs = pair()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of observers without data
        with pytest.raises(
            ArgumentError, match=r"BatchNorm2d 'stem\.1': torch\..*xhat\.torch\.revert\(model\) first"
        ):
            QUANTIZERS[tool](ours)
        found, expected = QUANTIZERS[tool](xt.revert(ours)), QUANTIZERS[tool](theirs)
    assert [type(m).__name__ for m in found.modules()] == [type(m).__name__ for m in expected.modules()]
    close(found.eval(), expected.eval())


@pytest.mark.parametrize("training", [False, True])
def test_modules_are_fused_in_eager_mode(training: bool) -> None:
    ours, theirs = (m.train(training) for m in pair())
    names = [["blocks.0.conv1", "blocks.0.bn1"], ["stem.0", "stem.1"]]
    names += [] if training else [["head", "norm"]]
    fuse = fuse_modules_qat if training else fuse_modules
    found, expected = fuse(ours, names), fuse(theirs, names)
    assert type(found.stem[0]) is type(expected.stem[0]) and type(found.stem[1]) is nn.Identity
    assert type(ours.stem[1]) is xt.BatchNorm2d  # a copy was fused
    close(found, expected)
    with_relu = [["0", "1", "2"]]
    chains = [m.stem for m in (ours, theirs)]
    for chain in chains:
        chain[2] = nn.ReLU().train(training)
    close(*(fuse(chain, with_relu) for chain in chains))


def test_a_layer_with_options_of_its_own_is_not_fused_in_eager_mode() -> None:
    chain = nn.Sequential(nn.Conv2d(C, C, 1), xt.BatchNorm2d(C, activation="silu")).eval()
    with pytest.raises(
        ArgumentError, match="fuse_modules: a batch norm has activation='silu', which torch's"
    ):
        fuse_modules(chain, [["0", "1"]])
