"""The architectures of timm, torchvision and segmentation_models_pytorch, with random parameters and statistics.

What is measured on them must never live here.
"""

import contextlib
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["Network", "networks", "with_random_statistics"]

ROOT = Path(__file__).parent.parent.parent


class Network(NamedTuple):
    """An architecture: its package, its name, and how it is built."""

    package: str
    name: str
    build: Callable[[], nn.Module]


def torchvision_with_its_schemas() -> Any:
    """torchvision, also where its own operators do not load."""
    sys.path.insert(0, str(ROOT / "tests" / "pytorch"))
    import architectures

    return architectures.torchvision()


def networks() -> list[Network]:
    """All of them, in an order that is always the same random one: the first hundred are a fair sample."""
    torchvision: Any = torchvision_with_its_schemas()
    import segmentation_models_pytorch as smp
    import timm

    found = [Network("timm", name, lambda name=name: timm.create_model(name)) for name in timm.list_models()]
    for name in torchvision.models.list_models():
        if not name.startswith("quantized_"):
            found.append(Network("torchvision", name, lambda name=name: _torchvisions(torchvision, name)))
    segmenters = {(a, "resnet18") for a in smp.MODEL_ARCHITECTURES_MAPPING if a not in ("segformer", "dpt")}
    segmenters |= {("segformer", "resnet18"), *(("unet", e) for e in smp.encoders.get_encoder_names())}
    for architecture, encoder in sorted(segmenters):
        found.append(
            Network(
                "segmentation_models_pytorch",
                f"{architecture} {encoder}",
                lambda a=architecture, e=encoder: smp.create_model(a, encoder_name=e, encoder_weights=None),
            )
        )
    random.Random(0).shuffle(found)
    return found


def _torchvisions(torchvision: Any, name: str) -> nn.Module:
    options: dict[str, Any] = {"weights": None}
    if (
        "fcn" in name
        or "rcnn" in name
        or "deeplab" in name
        or "lraspp" in name
        or "ssd" in name
        or "retina" in name
    ):
        options["weights_backbone"] = None
    if name in ("inception_v3", "googlenet"):
        options |= {"aux_logits": False, "init_weights": False}
    model: nn.Module = torchvision.models.get_model(name, **options)
    return model


def inputs_of(network: Network, model: Any) -> list[Any]:
    """Arguments to try, the smallest images first."""
    generator = torch.Generator().manual_seed(0)

    def image(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    if network.name.startswith("raft"):
        return [(image(1, 3, 128, 128), image(1, 3, 128, 128))]
    if any(part in network.name for part in ("rcnn", "ssd", "retinanet", "fcos")):
        return [([image(3, 128, 128)],)]
    if network.package == "torchvision" and any(
        part in network.name for part in ("r3d", "mc3", "r2plus1d", "s3d")
    ):
        return [(image(2, 3, 16, 64, 64),)]
    size = getattr(model, "default_cfg", {}).get("input_size", (3, 224, 224))[-1]
    channels = getattr(model, "default_cfg", {}).get("input_size", (3, 224, 224))[0]
    return [(image(2, channels, s, s),) for s in dict.fromkeys((64, 128, size))]


def with_random_statistics(model: nn.Module, inputs: list[Any]) -> tuple[nn.Module, Any]:
    """The model in evaluation, and the first inputs that it takes.

    The running statistics are a batch's, so that values keep their size through the layers. Then each mean is moved
    by .3 deviations and each variance by up to 2, at random, and so are gamma and beta, whose ones and
    zeros would hide mistakes.
    """
    norms = [m for m in model.modules() if isinstance(getattr(m, "running_mean", None), Tensor)]
    for norm in norms:
        norm.momentum = 1.0
    error: Exception | None = None
    for given in inputs:
        try:
            with torch.no_grad():
                model.eval()(*given)
            break
        except Exception as raised:
            error = raised
    else:
        raise error or ValueError("no inputs")
    with torch.no_grad(), contextlib.suppress(Exception):  # some do not train on so little
        model.train()(*given)
    generator = torch.Generator().manual_seed(1)
    for norm in norms:
        moved = torch.randn(norm.running_mean.shape, generator=generator)
        norm.running_mean += 0.3 * moved * (norm.running_var + norm.eps).sqrt()
        norm.running_var *= 2 ** (2 * torch.rand(moved.shape, generator=generator) - 1)
        norm.running_var.clamp_(min=1e-3)
        if isinstance(norm.weight, nn.Parameter):
            norm.weight.data.add_(0.2 * torch.randn(moved.shape, generator=generator))
            norm.bias.data.add_(0.2 * torch.randn(moved.shape, generator=generator))
    return model.eval(), given
