"""The networks and forms of a step, and their memory, time and errors. What is printed must never live here."""

import ctypes
import gc
import multiprocessing
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import xhat.torch as xt
from benchmarks.fold.networks import torchvision_with_its_schemas
from benchmarks.torch.nets import resnet20
from xhat.torch.accumulate.kept import blocks, recomputed

__all__ = ["NETWORKS", "rows"]

WHOLE, PLAIN = "whole batch", "plain accumulation"
# Of each network: the batch, and the size of the images.
NETWORKS = {"ResNet-20": (128, 32), "DenseNet-121": (32, 64), "U-Net (ResNet-18)": (16, 64)}
Form = Callable[[nn.Module, Tensor], Any]


def build(name: str) -> nn.Module:
    """The network, in training mode."""
    torch.manual_seed(0)
    if name == "ResNet-20":
        return resnet20()
    torchvision: Any = torchvision_with_its_schemas()
    if name == "DenseNet-121":
        model: nn.Module = torchvision.models.densenet121(num_classes=10)
        return model
    import segmentation_models_pytorch as smp

    unet: nn.Module = smp.Unet("resnet18", encoder_weights=None)
    return unet


def loss(output: Tensor, x: Tensor) -> Tensor:
    """The mean over the samples: classes, or masks, that follow from the images."""
    if output.dim() == 4:
        return (output - x.mean(1, keepdim=True)).square().mean()
    return cross_entropy(output, (x[:, 0, 0, 0] > 0).long())


def whole(model: nn.Module, x: Tensor) -> None:
    """One pass of all samples."""
    loss(model(x), x).backward()


def with_blocks_recomputed(model: nn.Module, x: Tensor) -> None:
    """The same, with the blocks of `xt.accumulate` as regions of activation checkpointing."""
    layers = {m for m in model.modules() if isinstance(m, nn.BatchNorm2d)}
    with ExitStack() as stack:
        for block in blocks(model, layers):
            stack.enter_context(recomputed(block))
        whole(model, x)


def plain(model: nn.Module, x: Tensor, parts: int) -> None:
    """Each micro-batch by itself."""
    for part in x.chunk(parts):
        (loss(model(part), part) * (len(part) / len(x))).backward()


def exact(model: nn.Module, x: Tensor, parts: int, keep: str) -> None:
    """`xt.accumulate`."""
    xt.accumulate(model, x.chunk(parts), loss, keep=keep)


def forms(parts: int, folder: str) -> dict[str, Form]:
    """All forms of a step."""
    return {
        WHOLE: whole,
        "whole batch, blocks recomputed": with_blocks_recomputed,
        PLAIN: partial(plain, parts=parts),
        "xt.accumulate": partial(exact, parts=parts, keep="inputs"),
        'keep="all"': partial(exact, parts=parts, keep="all"),
        "keep=folder": partial(exact, parts=parts, keep=folder),
    }


def resident(field: str) -> int:
    """VmRSS or VmHWM of this process, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def peak(form: Form, name: str, x: Tensor, pipe: Any) -> None:
    """Sends the peak of the second step."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    libc = ctypes.CDLL("libc.so.6")
    libc.mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD: freed tensors go back to the system
    model = build(name)
    form(model, x)
    model.zero_grad()
    gc.collect()
    libc.malloc_trim(0)
    before = resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew
    form(model, x)
    pipe.send(resident("VmHWM") - before)


def memory_of(form: Form, name: str, x: Tensor) -> int:
    """The peak of a step, in bytes, measured in a process of its own."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=peak, args=(form, name, x, theirs))
    child.start()
    theirs.close()
    found: int = ours.recv()
    child.join()
    return found


def off(form: Form, name: str, x: Tensor, expected: list[Tensor]) -> float:
    """The relative error of all gradients together, in float64."""
    model = build(name).double()
    form(model, x.double())
    pairs = [(p.grad, g) for p, g in zip(model.parameters(), expected, strict=True) if p.grad is not None]
    total = sum(float(g.square().sum()) for _, g in pairs)
    return (sum(float((p - g).square().sum()) for p, g in pairs) / total) ** 0.5


def times(steps: dict[str, Form], name: str, x: Tensor, repeats: int) -> dict[str, float]:
    """The least processor time of a step of each form; the steps alternate."""
    models = {form: build(name) for form in steps}
    least = dict.fromkeys(steps, float("inf"))
    for k in range(repeats + 1):
        for form, step in steps.items():
            start = time.process_time()
            step(models[form], x)
            least[form] = min(least[form], time.process_time() - start) if k else least[form]
    return least


def rows(name: str, parts: int, repeats: int, folder: str) -> list[str]:
    """A network's rows of the table."""
    n, size = NETWORKS[name]
    x = torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))
    steps = forms(parts, folder)
    reference = build(name).double()
    whole(reference, x.double())
    expected = [p.grad for p in reference.parameters() if p.grad is not None]
    errors = {form: off(step, name, x, expected) for form, step in steps.items()}
    assert all(error < 1e-9 for form, error in errors.items() if form != PLAIN), errors
    memory = {form: memory_of(step, name, x) for form, step in steps.items()}
    seconds = times(steps, name, x, repeats)
    return [
        f"| {name}, {tuple(x.shape)} | {form} | {memory[form] / 1e6:.0f} MB | {memory[form] / memory[WHOLE]:.2f} | "
        f"{seconds[form] / seconds[WHOLE]:.2f} | {errors[form]:.0e} |"
        for form in steps
    ]
