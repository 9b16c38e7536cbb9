"""Healthy models: trained on real data without a fault. The doctor must find nothing harmful in them."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from data import batches, clips, digit_images, digit_sequences, endless, noisy, patches, table
from fitting import Case, cross_entropy, fit, squares
from networks import UNet, convolutions, mlp, norms, residual, timm_model
from pytorch.architectures import torchvision
from torch import Tensor, nn


class Subject(NamedTuple):
    """A network and the data that it is trained on."""

    build: Callable[[], nn.Module]
    data: Callable[[], tuple[Tensor, Tensor]]
    loss: Any = cross_entropy
    lr: float = 2e-3


class Setting(NamedTuple):
    """How a network is trained."""

    name: str
    seed: int
    size: int
    momentum: float

    def __str__(self) -> str:
        return f"{self.name}, seed {self.seed}, batches of {self.size}, momentum {self.momentum}"


class Detector(nn.Module):
    """A backbone with frozen batch norms, as detectors have it, and a head with batch norms of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = residual(4)[:-1]
        self.head = mlp(32, 4, width=32, depth=1)

    def freeze(self) -> None:
        """FrozenBatchNorm2d takes the place of every batch norm of the backbone, and its parameters stop."""
        self.backbone.requires_grad_(False)
        for module in list(self.backbone.modules()):
            for name, child in list(module.named_children()):
                if isinstance(child, nn.BatchNorm2d):
                    frozen = torchvision().ops.FrozenBatchNorm2d(child.num_features)
                    frozen.load_state_dict(child.state_dict(), strict=False)
                    setattr(module, name, frozen)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.backbone(x))
        return out


def unet_of_smp() -> nn.Module:
    """A published U-Net with a ResNet-18 as its encoder."""
    torchvision()
    from segmentation_models_pytorch import Unet

    return Unet("resnet18", encoder_weights=None, decoder_channels=(32, 16, 16, 8, 8), classes=3)


def timm_subject(name: str) -> Subject:
    """A network of timm's for digits that are enlarged to 32 x 32."""
    return Subject(partial(timm_model, name, 10), digit_images)


SUBJECTS: dict[str, Subject] = {
    "mlp": Subject(partial(mlp, 30, 2), partial(table, "breast_cancer")),
    "mlp, wine": Subject(partial(mlp, 13, 3, depth=3), partial(table, "wine")),
    "regression": Subject(partial(mlp, 10, 1), partial(table, "diabetes"), squares),
    "1-d": Subject(partial(convolutions, 8, 10, 1), digit_sequences),
    "2-d": Subject(partial(convolutions, 3, 4, 2), patches),
    "3-d": Subject(partial(convolutions, 3, 4, 3, width=8, depth=2), clips),
    "small resnet": Subject(partial(residual, 4), patches),
    "u-net": Subject(partial(UNet, width=6), noisy, squares),
    "detector": Subject(Detector, patches),
    "u-net, smp": Subject(unet_of_smp, partial(noisy, 32, 200), squares),
    "resnet18": timm_subject("resnet18"),
    "densenet121": timm_subject("densenet121"),
    "efficientnet_b0": timm_subject("efficientnet_b0"),
    "mobilenetv3_small_100": timm_subject("mobilenetv3_small_100"),
    "regnety_002": timm_subject("regnety_002"),
    "convnext_atto": timm_subject("convnext_atto"),
}
SMALL = tuple(SUBJECTS)[:9]
LARGE = tuple(SUBJECTS)[9:]


# A part of the grid that takes less than a minute: each kind of small network, the extremes of size and momentum.
QUICK = (
    Setting("mlp", 0, 8, 0.1),
    Setting("mlp", 1, 128, 0.01),
    Setting("mlp, wine", 0, 8, 0.01),
    Setting("regression", 2, 8, 0.1),
    Setting("1-d", 0, 32, 0.1),
    Setting("2-d", 1, 8, 0.1),
    Setting("3-d", 0, 32, 0.1),
    Setting("small resnet", 0, 32, 0.1),
    Setting("u-net", 1, 8, 0.1),
    Setting("detector", 0, 32, 0.1),
)


class Series(NamedTuple):
    """The trainings of one network with one seed and size of batches: with each momentum."""

    name: str
    seed: int
    size: int


def grid(names: Iterable[str], sizes: Iterable[int] = (8, 32, 128), seeds: int = 3) -> Iterator[Series]:
    """Every series of these networks."""
    for name in names:
        for size in sizes:
            for seed in range(seeds):
                yield Series(name, seed, size)


def trained(series: Series) -> Iterator[tuple[Setting, Case]]:
    """The models of a series, each to be diagnosed before the next one is trained.

    A momentum of .01 needs 300 steps to forget the initial statistics. Small networks take 500 from the start; the
    large ones go on with this momentum for some steps, as a fine-tuning does. Their learning rate falls at the end, as
    in any schedule: in the middle of a training, running statistics trail the weights, and the doctor is right to say
    so.
    """
    small = series.name in SMALL
    settings = [Setting(*series, momentum) for momentum in (0.1, 0.01)]
    if small:
        yield from ((setting, healthy(setting)) for setting in settings)
        return
    subject = SUBJECTS[series.name]
    torch.manual_seed(series.seed)
    model = subject.build()
    data = endless(*subject.data(), series.size, series.seed)
    low = subject.lr / 20
    for setting, stages in zip(settings, (((40, subject.lr), (25, low)), ((15, low),)), strict=True):
        for steps, lr in stages:
            _train(model.train(), data, subject._replace(lr=lr), setting.momentum, steps)
        yield setting, _case(setting, model)


def healthy(setting: Setting) -> Case:
    """The small model of a setting after its training; a healthy case has no cause."""
    subject = SUBJECTS[setting.name]
    torch.manual_seed(setting.seed)
    model = subject.build()
    data = endless(*subject.data(), setting.size, setting.seed)
    _train(model, data, subject, setting.momentum, 150 if setting.momentum > 0.05 else 500)
    if isinstance(model, Detector):
        model.freeze()
        _train(model, data, subject, setting.momentum, 150)
    return _case(setting, model)


def _case(setting: Setting, model: nn.Module) -> Case:
    subject = SUBJECTS[setting.name]
    data = batches(*subject.data(), setting.size, setting.seed + 17)
    return Case("", model, data[: max(4, 256 // setting.size)], subject.loss)


def _train(model: nn.Module, data: Iterator[Any], subject: Subject, momentum: float, steps: int) -> None:
    for norm in norms(model):
        norm.momentum = momentum
    fit(model, data, subject.loss, subject.lr, steps)
