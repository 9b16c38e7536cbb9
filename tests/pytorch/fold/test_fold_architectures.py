"""Published networks: what is folded, the same function in float64, and ONNX Runtime on the export.

`python -m benchmarks.fold` has all of them.
"""

import copy
import importlib.util
import io
import os
import warnings

import pytest
import torch
from architectures import network
from models import in_float64, norms_in, numbers
from torch import Tensor, nn

import xhat.torch as xt

needed = [name for name in ("timm", "segmentation_models_pytorch") if not importlib.util.find_spec(name)]
pytestmark = pytest.mark.skipif(
    bool(needed) and not os.environ.get("CI"),
    reason=f"outside of continuous integration, {needed} may be missing",
)

# All batch norms, and those that are folded: DenseNet's others stand behind concatenations of maps that are used again.
COUNTS = {"resnet18": (20, 20), "densenet121": (121, 59), "mobilenetv3_small_100": (34, 34), "unet": (30, 30)}
X = numbers("images", 2, 3, 64, 64)


def with_statistics(model: nn.Module) -> nn.Module:
    """In evaluation, with statistics of a batch, moved at random."""
    with torch.no_grad():
        model.train()(numbers("batch", 2, 3, 64, 64))
    generator = torch.Generator().manual_seed(2)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            assert m.running_mean is not None and m.running_var is not None
            m.running_mean.add_(torch.randn(len(m.running_mean), generator=generator) * 0.1)
            m.running_var.mul_(0.5 + torch.rand(len(m.running_mean), generator=generator))
    return model.eval()


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found.detach().double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", COUNTS)
def test_a_network_is_folded_and_stays_the_same_function(name: str) -> None:
    model = with_statistics(network(name))
    expected = in_float64(model, X)
    folded, changes = xt.fold(model, X)
    assert (len(changes), sum(c.folded for c in changes)) == COUNTS[name]
    assert norms_in(folded) == COUNTS[name][0] - COUNTS[name][1]
    assert relative(folded(X), expected) < 2e-6
    assert relative(in_float64(folded, X), expected) < 2e-6
    exact, changes = xt.fold(copy.deepcopy(model).double(), X.double())
    assert sum(c.folded for c in changes) == COUNTS[name][1]
    assert relative(exact(X.double()), expected) < 1e-13


def test_a_converted_network_is_folded_likewise() -> None:
    model = with_statistics(network("mobilenetv3_small_100"))
    folded, changes = xt.fold(xt.convert(copy.deepcopy(model))[0], X)
    assert sum(c.folded for c in changes) == COUNTS["mobilenetv3_small_100"][1]
    assert relative(folded(X), in_float64(model, X)) < 2e-6


def test_training_with_frozen_statistics_is_the_same_function() -> None:
    model = with_statistics(network("resnet18")).double()
    folded, changes = xt.fold_frozen(copy.deepcopy(model))
    assert sum(c.folded for c in changes) == 20
    grads = []
    for m in (model, folded):
        (m(X.double()) * numbers("loss", 2, 10, dtype=torch.float64)).sum().backward()
        grads.append({name: p.grad for name, p in m.named_parameters()})
    for name, expected in grads[0].items():
        assert expected is not None and grads[1][name] is not None
        assert relative(grads[1][name], expected) < 1e-10, name


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_100"])
def test_onnx_runtime_computes_the_folded_export(name: str) -> None:
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    model = with_statistics(network(name))
    folded, _ = xt.fold(model, X)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(folded, (X,), file := io.BytesIO(), dynamo=False, do_constant_folding=False)
    proto = onnx.load_from_string(file.getvalue())
    kinds = [node.op_type for node in proto.graph.node]
    assert kinds.count("BatchNormalization") == 0 and kinds.count("Conv") > 10
    session = runtime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: X.numpy()})
    assert relative(torch.from_numpy(found), in_float64(model, X)) < 2e-6
