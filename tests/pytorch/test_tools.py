"""torch's own tools on xhat's layers and on converted models: what they do with torch's layers, or an error that says
what to do. Tools from other packages are in test_tools_of_others.
"""

import copy
import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from blocks import C, Residual
from comparing import made
from torch import Tensor, nn
from torch.ao.quantization import fuse_modules, fuse_modules_qat, get_default_qconfig_mapping, quantize_fx
from torch.nn.utils import fusion
from torch.optim.swa_utils import AveragedModel, update_bn

import xhat.torch as xt
from xhat.errors import ArgumentError, DtypeError
from xhat.torch import functional
from xhat.torch.nn import BatchNorm

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from torch.fx.experimental import optimization
    from torch.utils import mkldnn

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

X = torch.randn(4, C, 6, 5, generator=torch.Generator().manual_seed(1))


class Network(nn.Module):
    """A stem, two residual blocks, one of them with a convolution as its shortcut, and a head with a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(C, C, 3), nn.BatchNorm2d(C), nn.SiLU(inplace=True))
        self.blocks = nn.Sequential(Residual(), Residual())
        self.blocks[1].downsample = nn.Sequential(nn.Conv2d(C, C, 1, bias=False), nn.BatchNorm2d(C))
        self.head, self.norm = nn.Linear(C, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.head(self.blocks(self.stem(x)).mean((2, 3)))))


def trained() -> nn.Module:
    """A network whose running statistics are no zeros and ones."""
    model = made(Network).float()
    with torch.no_grad():
        for i in range(3):
            model(X * (1 + i) + 0.3 * i)
    return model.eval()


def pair() -> tuple[nn.Module, nn.Module]:
    """The same network with xhat's layers, and with torch's."""
    theirs = trained()
    ours, changes = xt.convert(copy.deepcopy(theirs))
    assert [c.fused for c in changes if c.fused] == ["silu", *["relu", "add, relu"] * 2, "relu"]
    return ours, theirs


def close(ours: nn.Module, theirs: nn.Module, x: Tensor = X) -> None:
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


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


def by_the_function(layer: Any) -> None:
    nn.functional.batch_norm(X, layer.running_mean, layer.running_var, eps=layer.eps)


def by_another_layer(layer: Any) -> None:
    nn.BatchNorm2d(C, eps=layer.eps).eval()(X)


def by_torchs_conversion(layer: Any) -> None:
    nn.SyncBatchNorm.convert_sync_batchnorm(layer)(X)


@pytest.mark.parametrize(
    "tool",
    [fold_linear, fold_convolution, by_hand, by_rsqrt_of_a_sum, by_numpy, by_the_function, by_another_layer,
     by_torchs_conversion],
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
    with pytest.raises(
        Exception, match="EpsOfALayerWithAnActivation"
    ):  # torch.jit says what it can't convert
        mkldnn.to_mkldnn(xt.BatchNorm2d(C, activation="relu").eval())


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
        seen.append(arguments[-1])
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


# ------------------------------------------------------------------------------------------- averages and statistics


def test_batch_statistics_are_recomputed_by_update_bn() -> None:
    ours, theirs = pair()
    for model in (ours, theirs):
        update_bn([X, X * 2, X - 1], model)
        assert model.stem[1].momentum == 0.1 and model.stem[1].num_batches_tracked == 3
    close(ours.eval(), theirs.eval())


def test_frozen_statistics_stay_whatever_resets_statistics() -> None:
    ours, _ = pair()
    xt.freeze(ours)
    state, expected = copy.deepcopy(ours.state_dict()), ours(X)
    update_bn([X, X * 2], ours)
    for layer in (ours.stem[1], ours.norm):
        layer.reset_running_stats()
        for name in ("running_mean", "running_var"):  # as Lightning's callback for averages does
            with pytest.raises(
                ArgumentError, match=rf"{name} is assigned, and the layer's statistics are frozen"
            ):
                setattr(layer, name, torch.full_like(getattr(layer, name), 7))
            setattr(layer, name, getattr(layer, name).clone())  # the same values
        with pytest.raises(ArgumentError, match="running_mean is assigned"):
            layer.running_mean = None
    assert all(torch.equal(v, state[k]) for k, v in ours.state_dict().items())
    assert torch.equal(ours.eval()(X), expected)


@pytest.mark.parametrize("assign", [False, True])
def test_frozen_statistics_are_loaded_cast_and_initialized(assign: bool) -> None:
    ours, theirs = pair()
    state = {k: v + 1 if v.is_floating_point() else v for k, v in theirs.state_dict().items()}
    xt.freeze(ours).load_state_dict(state, assign=assign)
    assert torch.equal(ours.stem[1].running_var, state["stem.1.running_var"])
    assert ours.double().stem[1].running_var.dtype == torch.float64
    ours.stem[1].reset_parameters()
    assert ours.stem[1].running_var.tolist() == [1] * C and ours.stem[1].frozen_statistics
    xt.unfreeze(ours).stem[1].reset_running_stats()
    ours.stem[1].running_mean = torch.ones(C)


def test_models_are_averaged_with_their_buffers() -> None:
    ours, theirs = pair()
    for set_option in (False, True):
        if set_option:
            ours.stem[1].nonfinite = "skip"
        averages = [AveragedModel(m.train(), use_buffers=True) for m in (ours, theirs)]
        for x in (X, X * 2 + 1):
            for model, average in zip((ours, theirs), averages, strict=True):
                model(x)
                average.update_parameters(model)
        for a, b in zip(*(m.state_dict().values() for m in averages), strict=True):
            torch.testing.assert_close(a, b)
        close(*(average.eval() for average in averages))


# -------------------------------------------------------------------------------------------------------- torch.export


def test_a_program_of_a_training_step_has_torchs_operation_and_needs_no_other_library() -> None:
    ours, theirs = pair()
    programs = [torch.export.export(m.train(), (X,)) for m in (ours, theirs)]
    targets = [[str(n.target) for n in p.graph.nodes if n.op == "call_function"] for p in programs]
    assert targets[0].count("aten.batch_norm.default") == targets[1].count("aten.batch_norm.default") == 7
    assert not any("xhat" in target for target in targets[0])
    modules = [p.module() for p in programs]
    close(*modules)
    for a, b in zip(*(m.buffers() for m in modules), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    "options",
    [{"correction": 1}, {"running_correction": 0}, {"nonfinite": "skip"}, {"momentum": None}],
    ids=str,
)
def test_a_program_of_other_options_keeps_them(options: dict[str, Any]) -> None:
    layer = xt.BatchNorm2d(C, **options)
    program = torch.export.export(copy.deepcopy(layer), (X,))
    assert any(str(n.target) == "xhat.batch_norm.default" for n in program.graph.nodes)
    module = program.module()
    torch.testing.assert_close(module(X), layer(X))
    torch.testing.assert_close(dict(module.named_buffers())["running_var"], layer.running_var)


# ------------------------------------------------------------------------------------------------------------- pickles


def test_whole_models_are_loaded_with_weights_only_if_their_classes_are_torchs() -> None:
    """A pickle of a fused class holds source code, which such a load is there to refuse."""
    ours, theirs = pair()
    needed = [
        nn.Sequential,
        nn.BatchNorm2d,
        nn.Conv2d,
        nn.SiLU,
        nn.ReLU,
        nn.Linear,
        nn.BatchNorm1d,
        set,
        Network,
        Residual,
    ]
    for model, loads in ((ours, False), (xt.revert(copy.deepcopy(ours)), True), (theirs, True)):
        torch.save(model, file := io.BytesIO())
        file.seek(0)
        with torch.serialization.safe_globals([*needed, xt.BatchNorm2d, xt.BatchNorm1d]):
            if loads:
                close(torch.load(file, weights_only=True), theirs)
            else:
                with pytest.raises(Exception, match="Weights only load failed"):
                    torch.load(file, weights_only=True)
                file.seek(0)
                close(torch.load(file, weights_only=False), theirs)


def test_a_layer_is_loaded_with_weights_only_once_its_class_is_named_as_torchs_is() -> None:
    for layer in (xt.BatchNorm2d(C, activation="relu"), nn.BatchNorm2d(C)):
        torch.save(layer, file := io.BytesIO())
        with torch.serialization.safe_globals([type(layer), set]):
            file.seek(0)
            assert repr(torch.load(file, weights_only=True)) == repr(layer)
