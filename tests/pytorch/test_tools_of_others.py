"""Tools of timm and torchvision on converted networks of theirs: what they give with torch's layers.

benchmarks/tools.py runs more tools, of packages that the tests do not install, on larger networks.
"""

import copy
import importlib.util
import os
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from architectures import network
from torch import Tensor, nn

import xhat.torch as xt
from xhat.errors import ArgumentError

needed = [name for name in ("timm", "torchvision") if not importlib.util.find_spec(name)]
pytestmark = pytest.mark.skipif(
    bool(needed) and not os.environ.get("CI"),
    reason=f"outside of continuous integration, {needed} may be missing",
)

NETWORKS = ["resnet18", "mobilenetv3_small_050", "efficientnet_b0", "densenet121"]
X = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(9))


@cache
def _trained(name: str) -> nn.Module:
    model = network(name).train()
    with torch.no_grad():
        for i in range(2):
            model(torch.randn(4, 3, 48, 48, generator=torch.Generator().manual_seed(i)))
    return model.eval()


def pair(name: str) -> tuple[nn.Module, nn.Module]:
    """The same network with xhat's layers, and with torch's and timm's."""
    return xt.convert(copy.deepcopy(_trained(name)))[0], copy.deepcopy(_trained(name))


def evaluated(model: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = model.eval()(X)
    return found


def kinds(model: nn.Module) -> list[str]:
    return [type(m).__name__ for m in model.modules()]


def frozen_layers(model: nn.Module) -> nn.Module:
    from timm.utils.model import freeze_batch_norm_2d

    return freeze_batch_norm_2d(model)


def frozen_again(model: nn.Module) -> nn.Module:
    from timm.utils.model import freeze, unfreeze

    freeze(model)
    unfreeze(model)
    return model


def frozen(model: nn.Module) -> nn.Module:
    from timm.utils.model import freeze

    freeze(model)
    return model


def for_many_processes(model: nn.Module) -> nn.Module:
    from timm.layers import convert_sync_batchnorm

    return convert_sync_batchnorm(model)


TOOLS: list[Callable[[nn.Module], nn.Module]] = [frozen_layers, frozen, frozen_again, for_many_processes]


@pytest.mark.parametrize("tool", TOOLS)
@pytest.mark.parametrize("name", NETWORKS)
def test_timms_tools_keep_the_activations(name: str, tool: Callable[[nn.Module], nn.Module]) -> None:
    ours, theirs = (tool(m) for m in pair(name))
    replaced = {"FrozenBatchNorm2d", "FrozenBatchNormAct2d", "SyncBatchNorm", "SyncBatchNormAct"}
    assert kinds(ours) == kinds(theirs)
    assert replaced & set(kinds(ours)) or tool is frozen_again
    expected = evaluated(theirs)
    torch.testing.assert_close(evaluated(ours), expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(expected, evaluated(_trained(name)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_features_are_those_of_the_original(name: str) -> None:
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    ours, theirs = pair(name)
    names = get_graph_node_names(theirs)
    assert get_graph_node_names(ours) == names
    nodes = names[1][1 :: max(1, len(names[1]) // 40)]
    found, expected = (create_feature_extractor(m, return_nodes=nodes).eval()(X) for m in (ours, theirs))
    for node in nodes:
        if isinstance(expected[node], Tensor):
            torch.testing.assert_close(found[node], expected[node], rtol=1e-3, atol=1e-4, msg=node)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_trace_has_the_nodes_of_the_original(name: str, training: bool) -> None:
    graphs = [torch.fx.symbolic_trace(m.train(training)) for m in pair(name)]
    nodes = [
        [(n.op, str(n.target), n.name) for n in g.graph.nodes if n.op != "call_function"] for g in graphs
    ]
    assert nodes[0] == nodes[1]
    if not training:
        torch.testing.assert_close(*map(evaluated, graphs), rtol=1e-4, atol=1e-4)


def test_a_layer_of_timms_with_options_of_its_own_is_one_node() -> None:
    ours, _ = pair("mobilenetv3_small_050")
    xt.freeze(ours)
    nodes = [n.op for n in torch.fx.symbolic_trace(ours).graph.nodes if str(n.target).endswith("bn1")]
    assert nodes and set(nodes) == {"call_module"}


def test_a_layer_of_timms_is_an_instance_of_its_class() -> None:
    from timm.layers import BatchNormAct2d

    ours, theirs = pair("mobilenetv3_small_050")
    assert isinstance(ours.bn1, BatchNormAct2d) and isinstance(ours.bn1, xt.BatchNorm2d)
    assert type(xt.revert(ours).bn1) is type(theirs.bn1)
    many = xt.convert_sync(pair("mobilenetv3_small_050")[0])
    assert isinstance(many.bn1, xt.SyncBatchNorm) and isinstance(many.bn1, BatchNormAct2d)
    torch.testing.assert_close(evaluated(many), evaluated(theirs), rtol=1e-4, atol=1e-4)


def test_an_activation_of_xhats_is_noticed_by_timm() -> None:
    model: Any = nn.Sequential(nn.Conv2d(3, 4, 3), xt.BatchNorm2d(4, activation="relu"))
    frozen_layers(model)
    with pytest.raises(ArgumentError, match="eps is added to a variance outside of the layer"):
        model(X)


def test_a_name_of_a_class_is_not_the_class_to_timm() -> None:
    """norm_layer=xt.BatchNorm2d: where timm chooses by name, its own layer is what the network gets."""
    from timm import create_model

    def given(name: str) -> set[type]:
        model = create_model(name, norm_layer=xt.BatchNorm2d)
        return {type(m) for m in model.modules() if isinstance(m, nn.BatchNorm2d)}

    assert given("resnet18") == {xt.BatchNorm2d}
    assert not any(issubclass(kind, xt.BatchNorm2d) for kind in given("efficientnet_b0"))
