"""A training step of ResNet-50 in bfloat16 with channels last: stock, and converted to xhat's layers."""

from collections.abc import Callable
from typing import Any

import torch

import xhat.torch as xt

__all__ = ["steps"]


def steps(device: str, batch: int = 64) -> dict[str, Callable[[], None]]:
    """A step of each model, as a function without arguments; empty where torchvision is missing."""
    try:
        from torchvision.models import resnet50
    except (ImportError, RuntimeError):
        return {}
    x = torch.randn(batch, 3, 224, 224, device=device).contiguous(memory_format=torch.channels_last)
    target = torch.randint(1000, (batch,), device=device)

    def step_of(model: Any) -> Callable[[], None]:
        model = model.to(device).to(memory_format=torch.channels_last).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(device, torch.bfloat16):
                loss = torch.nn.functional.cross_entropy(model(x), target)
            loss.backward()
            optimizer.step()

        return step

    stock, converted = resnet50(), resnet50()
    xt.use_triton()
    xt.convert(converted)
    return {"stock": step_of(stock), "converted": step_of(converted)}
