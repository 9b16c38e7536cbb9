"""Real architectures, from packages, with random parameters: nothing is downloaded.

timm and segmentation-models-pytorch import torchvision, of which there may be no build beside a CPU's torch: its own
operators then don't load, and its import fails for want of two schemas. No network here uses them.
"""

from typing import Any

import torch
from torch import nn


def _torchvision() -> Any:
    """torchvision, or what of it needs no operator of its own."""
    try:
        import torchvision
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision

        torchvision.schemas_for_tests = library  # it lives as long as its schemas are needed
    return torchvision


def network(name: str) -> nn.Module:
    """A network of timm's by its name, or "unet": a ResNet-18 encoder and a decoder with skip connections."""
    _torchvision()
    torch.manual_seed(0)
    if name == "unet":
        from segmentation_models_pytorch import Unet

        model = Unet("resnet18", encoder_weights=None, decoder_channels=(32, 16, 16, 8, 8))
    else:
        from timm import create_model

        model = create_model(name, num_classes=10)
    for p in model.parameters():
        if p.dim() == 1:  # batch norms begin with ones and zeros, which hide mistakes
            nn.init.normal_(p, 0.4, 0.3)
    return model
