"""ONNX: the evaluation form is exported by both of torch's exporters, as the node that runtimes fold."""

import copy
import io
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from definition import generator
from torch import nn

import xhat.torch as xt

onnx = pytest.importorskip("onnx")
runtime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

EXPORTERS = pytest.mark.parametrize("dynamo", [False, True], ids=["torchscript", "dynamo"])


@pytest.fixture(autouse=True)
def silent() -> Iterator[None]:
    """The exporters warn of themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def data() -> torch.Tensor:
    """A batch."""
    return torch.randn(4, 3, 6, 5, generator=generator("onnx"))


def exported(model: nn.Module, x: torch.Tensor, dynamo: bool) -> Any:
    """The model's ONNX form, checked."""
    if dynamo:
        found = torch.onnx.export(model, (x,), dynamo=True, verbose=False, optimize=False).model_proto
    else:
        file = io.BytesIO()
        torch.onnx.export(model, (x,), file, dynamo=False, do_constant_folding=False)
        found = onnx.load_from_string(file.getvalue())
    onnx.checker.check_model(found)
    return found


def run(proto: Any, x: torch.Tensor) -> torch.Tensor:
    """y, by a runtime of others."""
    session = runtime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


@EXPORTERS
@pytest.mark.parametrize("activation", [None, "relu", ("leaky_relu", 0.1), "silu"], ids=str)
@pytest.mark.parametrize("affine", [True, False], ids=["affine", "not affine"])
def test_a_layer_is_one_node_and_its_activation(activation: Any, affine: bool, dynamo: bool) -> None:
    layer = xt.BatchNorm2d(3, activation=activation, affine=affine)
    layer(data() * 2 + 1)
    proto = exported(layer.eval(), data(), dynamo)
    assert [node.op_type for node in proto.graph.node].count("BatchNormalization") == 1
    torch.testing.assert_close(run(proto, data()), layer(data()).detach())


@EXPORTERS
def test_a_converted_residual_network(dynamo: bool) -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.bn(self.conv(x)) + x)

    model, changes = xt.convert(nn.Sequential(Block(), Block()))
    assert [change.fused for change in changes] == ["add, relu"] * 2
    model(data() * 2 + 1)
    proto = exported(model.eval(), data(), dynamo)
    torch.testing.assert_close(run(proto, data()), model(data()).detach())


def test_a_frozen_layer_is_exported_frozen_for_training() -> None:
    """The exporter calls .train(), after which torch's layer uses the batch's statistics again."""
    theirs = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.ReLU())
    for _ in range(3):
        theirs(data() * 2 + 1)
    ours = xt.freeze(xt.convert(copy.deepcopy(theirs))[0])
    theirs[1].eval()
    off = []
    for model in (ours, theirs):
        expected = model(data()).detach()
        options: dict[str, Any] = {"training": torch.onnx.TrainingMode.TRAINING, "do_constant_folding": False}
        torch.onnx.export(model, (data(),), file := io.BytesIO(), dynamo=False, **options)
        off.append(float((run(onnx.load_from_string(file.getvalue()), data()) - expected).abs().max()))
    assert off[0] < 1e-5 and off[1] > 0.1, off


def test_the_training_form_is_refused_by_one_exporter() -> None:
    """torch exports its own layer's as a node that few runtimes know; ours is an operator that none does."""
    options: dict[str, Any] = {
        "training": torch.onnx.TrainingMode.TRAINING,
        "dynamo": False,
        "verbose": False,
    }
    with pytest.raises(Exception, match=r"xhat::batch_norm"):
        torch.onnx.export(xt.BatchNorm2d(3), (data(),), io.BytesIO(), **options)


def test_the_training_form_is_torchs_in_the_other_exporter() -> None:
    """It goes through torch.export."""
    found = [exported(kind(3).train(), data(), dynamo=True) for kind in (xt.BatchNorm2d, nn.BatchNorm2d)]
    ours, theirs = ([node.op_type for node in proto.graph.node] for proto in found)
    assert ours == theirs
    torch.testing.assert_close(run(found[0], data()), run(found[1], data()))
