"""Small models and batches for the doctor's tests, and everything of a model and a process that must not change."""

import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import xhat.torch as xt

CHANNELS = 3


def batches(count: int = 4, size: int = 6, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    """Images and classes."""
    g = torch.Generator().manual_seed(seed)
    return [
        (2 * torch.randn(size, CHANNELS, 5, 4, generator=g) + 1, torch.randint(0, 7, (size,), generator=g))
        for _ in range(count)
    ]


def net(seed: int = 0, norm: Any = nn.BatchNorm2d) -> nn.Sequential:
    """Two batch norms of different widths, dropout between them."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(CHANNELS, 4, 3, padding=1), norm(4), nn.ReLU(), nn.Dropout(0.3),
            nn.Conv2d(4, 5, 2), norm(5), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 7),
        )  # fmt: skip


def loss(output: Tensor, batch: Any) -> Tensor:
    """Cross entropy with the classes of the batch."""
    return F.cross_entropy(output, batch[1])


def taught(model: nn.Module, data: Any) -> list[tuple[Tensor, Tensor]]:
    """The same inputs, with what the model gives for them in evaluation as the targets."""
    with torch.no_grad():
        return [(x, model.eval()(x)) for x, _ in data]


def squared(output: Tensor, batch: Any) -> Tensor:
    """The mean squared distance from the targets."""
    return F.mse_loss(output, batch[1])


def fitted(model: nn.Module, data: Any) -> nn.Module:
    """The model with the exact statistics of these batches."""
    xt.recalibrate(model.eval(), data, progress=False)
    return model


def far_off(model: nn.Module, path: str, factor: float = 400.0) -> nn.Module:
    """The model with the variances of one layer wrong by this factor."""
    layer: Any = model.get_submodule(path)
    layer.running_var.mul_(factor)
    layer.running_mean.add_(5)
    return model


def bits(t: Any) -> Any:
    """A tensor's bits and kind; other values as they are."""
    if isinstance(t, Tensor):
        found = t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).tolist()
        return str(t.dtype), tuple(t.shape), t.requires_grad, found
    return t


def snapshot(model: nn.Module) -> Any:
    """Identity and bits of everything a model holds: parameters, gradients, buffers, modes, hooks, attributes."""
    held = []
    for path, m in model.named_modules():
        held_hooks = [hooks for name, hooks in vars(m).items() if name.endswith("_hooks")]
        hooks = [
            [(k, id(v)) for k, v in h.items()] if isinstance(h, dict) else list(map(id, h))
            for h in held_hooks
        ]
        own = {k: id(v) for k, v in vars(m).items()}
        buffers = [(k, id(b), bits(b)) for k, b in m._buffers.items()]
        parameters = [
            (k, id(p), bits(p), bits(None if p is None else p.grad)) for k, p in m._parameters.items()
        ]
        held.append((path, type(m), m.training, hooks, own, buffers, parameters))
    return held


def process() -> Any:
    """The state of the process that must not change."""
    numpys = np.random.get_state()
    return (
        bits(torch.get_rng_state()), random.getstate(), (numpys[0], numpys[1].tolist(), *numpys[2:]),
        torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"), torch.is_autocast_cache_enabled(),
        torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.get_default_dtype(), torch.get_float32_matmul_precision(), torch.is_grad_enabled(),
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark, torch.is_inference_mode_enabled(),
    )  # fmt: skip
