"""Real architectures, from packages, with random parameters: nothing is downloaded.

timm and segmentation-models-pytorch import torchvision. If there is no build of it for this torch, its own operators
do not load, and its import fails because two schemas are missing. No network here uses them.
"""

from typing import Any

import torch
from torch import nn


def torchvision() -> Any:
    """torchvision, without its own operators if they do not load."""
    try:
        import torchvision
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision

        torchvision.schemas_for_tests = library  # keeps the schemas alive
    return torchvision


def network(name: str) -> nn.Module:
    """A network of timm's by its name, or "unet": a ResNet-18 encoder and a decoder with skip connections."""
    torchvision()
    torch.manual_seed(0)
    if name == "unet":
        from segmentation_models_pytorch import Unet

        model = Unet("resnet18", encoder_weights=None, decoder_channels=(32, 16, 16, 8, 8))
    else:
        from timm import create_model

        model = create_model(name, num_classes=10)
    for p in model.parameters():
        if p.dim() == 1:  # the initial ones and zeros of batch norms would hide mistakes
            nn.init.normal_(p, 0.4, 0.3)
    return model
