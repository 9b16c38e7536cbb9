"""The tools, as functions of a model. What is made of their results must never live here."""

import io
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import xhat.torch as xt

__all__ = ["TOOLS", "Tool", "X"]

X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(9))


class Tool(NamedTuple):
    """A tool: its package, its name, what it does with a model, and whether a small chain is its model."""

    package: str
    name: str
    run: Callable[[Any], Any]
    chain: bool = False


def evaluated(model: nn.Module, x: Tensor = X) -> Tensor:
    """y in evaluation."""
    torch.manual_seed(5)
    with torch.no_grad():
        found: Tensor = model.eval()(x)
    return found


# ------------------------------------------------------------------------------------------------------------ torch


def fold(model: Any) -> Any:
    from torch.nn.utils.fusion import fuse_conv_bn_eval

    model.eval()
    model[0], model[1] = fuse_conv_bn_eval(model[0], model[1]), nn.Identity()
    return evaluated(model)


def fuse_modules(model: Any) -> Any:
    return evaluated(torch.ao.quantization.fuse_modules(model.eval(), [["0", "1", "2"]]))


def fuse_fx(model: Any) -> Any:
    from torch.ao.quantization.quantize_fx import fuse_fx

    return evaluated(fuse_fx(model.eval()))


def prepare_fx(model: Any) -> Any:
    from torch.ao.quantization import get_default_qconfig_mapping
    from torch.ao.quantization.quantize_fx import prepare_fx

    return evaluated(prepare_fx(model.eval(), get_default_qconfig_mapping("x86"), (X,)))


def prepare_qat_fx(model: Any) -> Any:
    from torch.ao.quantization import get_default_qat_qconfig_mapping
    from torch.ao.quantization.quantize_fx import prepare_qat_fx

    return evaluated(prepare_qat_fx(model.train(), get_default_qat_qconfig_mapping("x86"), (X,)))


def optimization_fuse(model: Any) -> Any:
    from torch.fx.experimental.optimization import fuse

    return evaluated(fuse(model.eval()))


def symbolic_trace(model: Any) -> Any:
    graph = torch.fx.symbolic_trace(model.eval())
    return evaluated(graph), [n.name for n in graph.graph.nodes]


def to_mkldnn(model: Any) -> Any:
    from torch.utils.mkldnn import to_mkldnn

    return evaluated(to_mkldnn(model[:3].eval()), X.to_mkldnn()).to_dense()


def torchs_sync(model: Any) -> Any:
    return evaluated(nn.SyncBatchNorm.convert_sync_batchnorm(model))


def update_bn(model: Any) -> Any:
    torch.optim.swa_utils.update_bn([X, X * 2], model)
    return evaluated(model)


def averaged(model: Any) -> Any:
    average = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    for x in (X, X * 2):
        model.train()(x)
        average.update_parameters(model)
    return evaluated(average.module)


def export(model: Any) -> Any:
    return torch.export.export(model.eval(), (X,)).module()(X)


def unpickled(model: Any) -> Any:
    torch.save(model, file := io.BytesIO())
    file.seek(0)
    return evaluated(torch.load(file, weights_only=False))


# ---------------------------------------------------------------------------------------------------------- packages


def freeze_batch_norm_2d(model: Any) -> Any:
    from timm.utils.model import freeze_batch_norm_2d

    return evaluated(freeze_batch_norm_2d(model))


def timm_freeze(model: Any) -> Any:
    from timm.utils.model import freeze

    freeze(model)
    return evaluated(model)


def timm_sync(model: Any) -> Any:
    from timm.layers import convert_sync_batchnorm

    return evaluated(convert_sync_batchnorm(model))


def features(model: Any) -> Any:
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    names = get_graph_node_names(model)
    node = names[1][len(names[1]) // 2]
    return create_feature_extractor(model.eval(), return_nodes=[node])(X)[node], names


def to_evaluation(model: Any) -> Any:
    from torchao.quantization.pt2e import move_exported_model_to_eval

    program = torch.export.export(model.train(), (X,)).module()
    with torch.no_grad():
        return move_exported_model_to_eval(program)(X)


def opacus_validator(model: Any) -> Any:
    from opacus.validators import ModuleValidator

    return f"{len(ModuleValidator.validate(model.train()))} layers refused"


def opacus_fix(model: Any) -> Any:
    from opacus.validators import ModuleValidator

    found = ModuleValidator.fix(model.train())
    return f"{sum(isinstance(m, nn.GroupNorm) for m in found.modules())} GroupNorms"


def opacus_gradients(model: Any) -> Any:
    from opacus import GradSampleModule

    torch.func.replace_all_batch_norm_modules_(
        model
    )  # the batch's statistics, which Opacus could take for a sample's
    GradSampleModule(model.train())(X).sum().backward()
    return "gradients of single samples"


def thop_count(model: Any) -> Any:
    from thop import profile

    return "{:.0f} operations, {:.0f} parameters".format(*profile(model.eval(), (X,), verbose=False))


def ptflops_count(model: Any) -> Any:
    from ptflops import get_model_complexity_info

    options = {"as_strings": False, "print_per_layer_stat": False, "backend": "pytorch"}
    return "{} operations, {} parameters".format(
        *get_model_complexity_info(model.eval(), (3, 64, 64), **options)
    )


def fvcore_count(model: Any) -> Any:
    from fvcore.nn import FlopCountAnalysis

    return f"{FlopCountAnalysis(model.eval(), X).unsupported_ops_warnings(False).total()} operations"


def precise(model: Any) -> Any:
    from fvcore.nn.precise_bn import update_bn_stats

    update_bn_stats(model.train(), [X, X * 2], 2)
    return evaluated(model)


def single_gradients(model: Any) -> Any:
    from backpack import backpack, extend
    from backpack.extensions import BatchGrad

    model, loss = extend(model.eval()), extend(nn.MSELoss())
    with backpack(BatchGrad()):
        loss(model(X), torch.zeros(2, 2)).backward()
    return model[1].weight.grad_batch


def attribution(name: str) -> Callable[[Any], Any]:
    def run(model: Any) -> Any:
        import captum.attr

        return getattr(captum.attr, name)(model.eval()).attribute(X.clone(), target=1).detach()

    return run


def lightning_averages(model: Any) -> Any:
    from pytorch_lightning.callbacks import StochasticWeightAveraging

    model.device = torch.device("cpu")
    callback = StochasticWeightAveraging(swa_lrs=0.1)
    callback.reset_batch_norm_and_save_state(model)
    model.train()(X)
    callback.reset_momenta()
    return evaluated(model)


def lightning_averages_of_frozen(model: Any) -> Any:
    if any(isinstance(m, xt.BatchNorm2d) for m in model.modules()):
        xt.freeze(model)
    return lightning_averages(model)


def exact_class(model: Any) -> Any:
    """As ultralytics' initialize_weights."""
    return f"{sum(type(m) is nn.BatchNorm2d for m in model.modules())} layers found by `type(m) is nn.BatchNorm2d`"


TOOLS = [
    Tool("torch", "nn.utils.fusion.fuse_conv_bn_eval", fold, chain=True),
    Tool("torch", "ao.quantization.fuse_modules", fuse_modules, chain=True),
    Tool("torch", "ao.quantization.quantize_fx.fuse_fx", fuse_fx),
    Tool("torch", "ao.quantization.quantize_fx.prepare_fx", prepare_fx),
    Tool("torch", "ao.quantization.quantize_fx.prepare_qat_fx", prepare_qat_fx),
    Tool("torch", "fx.experimental.optimization.fuse", optimization_fuse),
    Tool("torch", "fx.symbolic_trace", symbolic_trace),
    Tool("torch", "utils.mkldnn.to_mkldnn", to_mkldnn, chain=True),
    Tool("torch", "nn.SyncBatchNorm.convert_sync_batchnorm", torchs_sync),
    Tool("torch", "optim.swa_utils.update_bn", update_bn),
    Tool("torch", "optim.swa_utils.AveragedModel(use_buffers=True)", averaged),
    Tool("torch", "export.export, in evaluation", export),
    Tool("torch", "load(weights_only=False)", unpickled),
    Tool("timm", "utils.model.freeze_batch_norm_2d", freeze_batch_norm_2d),
    Tool("timm", "utils.model.freeze", timm_freeze),
    Tool("timm", "layers.convert_sync_batchnorm", timm_sync),
    Tool("torchvision", "models.feature_extraction.create_feature_extractor", features),
    Tool("torchao", "quantization.pt2e.move_exported_model_to_eval", to_evaluation),
    Tool("opacus", "validators.ModuleValidator.validate", opacus_validator),
    Tool("opacus", "validators.ModuleValidator.fix", opacus_fix),
    Tool("opacus", "GradSampleModule", opacus_gradients, chain=True),
    Tool("thop", "profile", thop_count),
    Tool("ptflops", "get_model_complexity_info", ptflops_count),
    Tool("fvcore", "nn.FlopCountAnalysis", fvcore_count),
    Tool("fvcore", "nn.precise_bn.update_bn_stats", precise),
    Tool("backpack-for-pytorch", "extensions.BatchGrad", single_gradients, chain=True),
    Tool("captum", "attr.LRP", attribution("LRP"), chain=True),
    Tool("captum", "attr.DeepLift", attribution("DeepLift"), chain=True),
    Tool("captum", "attr.GuidedBackprop", attribution("GuidedBackprop"), chain=True),
    Tool("captum", "attr.IntegratedGradients", attribution("IntegratedGradients"), chain=True),
    Tool("pytorch-lightning", "callbacks.StochasticWeightAveraging", lightning_averages),
    Tool("pytorch-lightning", "the same, the layers frozen by `xt.freeze`", lightning_averages_of_frozen),
    Tool("an initializer like ultralytics'", "layers by their exact class", exact_class),
]
