"""Tools that average, reset, load, export and pickle, on converted models: what they do with torch's layers."""

import copy
import io
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from blocks import C, Residual
from small_network import Network, X, close, pair
from torch import nn
from torch.optim.swa_utils import AveragedModel, update_bn

import xhat.torch as xt
from xhat.errors import ArgumentError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

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


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("strict", [False, True])
def test_a_program_of_evaluation_has_torchs_operation(strict: bool, frozen: bool) -> None:
    """For those who quantize it or fold it. What torch's operation cannot take stays as it is."""
    ours, theirs = pair()
    program = torch.export.export(xt.freeze(ours).train() if frozen else ours, (X,), strict=strict)
    targets = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
    assert targets.count("aten.batch_norm.default") == 7
    close(program.module(), theirs)
    mixed = xt.BatchNorm2d(C).eval()
    targets = [str(n.target) for n in torch.export.export(mixed, (X.double(),), strict=strict).graph.nodes]
    assert "aten.batch_norm.default" not in targets


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_a_trace_of_evaluation_has_torchs_operation() -> None:
    ours, theirs = pair()
    traced = torch.jit.trace(ours, (X,))
    assert str(traced.inlined_graph).count("aten::batch_norm") == 7
    close(traced, theirs)


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


def switched(program: Any) -> torch.fx.GraphModule:
    """The program in evaluation, as torchao's move_exported_model_to_eval makes it: of each operation of torch's."""
    module: torch.fx.GraphModule = program.module()
    for node in module.graph.nodes:
        if str(node.target) == "aten.batch_norm.default":
            node.args = (*node.args[:5], False, *node.args[6:])
    module.recompile()
    return module


class Masked(nn.Module):
    """A layer that is given a mask."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = xt.BatchNorm2d(C)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x, mask=x[:, :1] > 0)  # type: ignore[no-any-return]


@pytest.mark.parametrize("strict", [False, True])
def test_a_program_takes_any_momentum_that_is_a_number(strict: bool) -> None:
    for momentum in (1, 0, 0.5):
        layer = xt.BatchNorm2d(C, momentum=momentum)
        program = torch.export.export(copy.deepcopy(layer), (X,), strict=strict)
        assert "aten.batch_norm.default" in [str(n.target) for n in program.graph.nodes]
        module = program.module()
        torch.testing.assert_close(module(X), layer(X))
        torch.testing.assert_close(dict(module.named_buffers())["running_var"], layer.running_var)


def test_a_program_of_what_is_no_momentum_is_not_made() -> None:
    for momentum in (math.nan, math.inf, "fast"):
        with pytest.raises(TypeError, match=r"momentum is .*, expected a finite number, or None"):
            torch.export.export(xt.BatchNorm2d(C, momentum=momentum), (X,))  # type: ignore[arg-type]


# What switching.md names as the layers that no tool switches.
KEPT = {
    "correction": lambda: xt.BatchNorm2d(C, correction=1),
    "running_correction": lambda: xt.BatchNorm2d(C, running_correction=0),
    "nonfinite": lambda: xt.BatchNorm2d(C, nonfinite="skip"),
    "momentum=None": lambda: xt.BatchNorm2d(C, momentum=None),
    "a mask": Masked,
}


@pytest.mark.parametrize("option", [None, *KEPT])
def test_a_program_of_training_is_switched_to_evaluation_where_switching_says_so(option: str | None) -> None:
    """A layer that is not switched normalizes by the batch; exported in evaluation, it is right."""
    layer = xt.BatchNorm2d(C, activation="relu") if option is None else KEPT[option]()
    layer(X * 2 + 1)
    graph = switched(torch.export.export(copy.deepcopy(layer).train(), (X,)))
    stays = not torch.allclose(graph(X), copy.deepcopy(layer).eval()(X), atol=0.1)
    assert stays is (option is not None)
    in_evaluation = torch.export.export(layer.eval(), (X,))
    assert "aten.batch_norm.default" in [str(n.target) for n in in_evaluation.graph.nodes]
    close(in_evaluation.module(), layer)
    page = (Path(__file__).parents[2] / "docs" / "switching.md").read_text("utf-8")
    (row,) = [line for line in page.splitlines() if line.startswith("| a program exported in training")]
    assert option is None or option in row


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


# ------------------------------------------------------------------------------------------------- single samples


def test_single_samples_have_no_gradients_here() -> None:
    """Opacus sets `grad_sample` and hooks the layer, of whose exact class it does not know that it mixes samples."""
    made = xt.BatchNorm2d(C, track_running_stats=False)
    made.weight.grad_sample = None
    made(X)
    handle = made.register_forward_hook(lambda *_: None)
    with pytest.raises(
        ArgumentError, match=r"BatchNorm2d: .*grad_sample.*mixes the samples.*ModuleValidator"
    ):
        made(X)
    made.eval()(X)
    handle.remove()
    made.train()(X)


# ------------------------------------------------------------------------------------------------------------ the page


def test_the_code_of_the_page_runs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "works-with.md").read_text("utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    assert blocks
    for block in blocks:
        exec(compile(block, "works-with.md", "exec"), {})
