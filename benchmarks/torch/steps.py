"""Whole training steps of a network: with torch's layers, after xt.convert, and without batch norm as the bound.

A step is forward, cross-entropy, backward and SGD with momentum, from the same weights, on the same batch. Loss and
gradients of the first are held against the same network in float64. Without batch norm ("identity") the activations
stay: what batch norm costs in a step is what the step takes beyond that one. The rate is 0, so that no step differs
from another; the optimizer does its work all the same.
"""

import subprocess
import sys
from collections.abc import Callable, Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import nn

import xhat.torch as xt
from benchmarks.harness.contest import Entry, Unverified, race
from benchmarks.harness.rows import ROOT, Row
from benchmarks.torch.cases import Net
from benchmarks.torch.nets import build

__all__ = ["CONTESTANTS", "measure", "peak_of_a_process", "peaks", "step_of"]

CONTESTANTS = ("torch", "xhat", "identity")
TOLERANCE = {
    "loss": 1e-4,
    "gradients": 2e-2,
}  # float32 through a whole network; a wrong layer is off by far more
PEAK_STEPS = 4


def _without(model: nn.Module) -> nn.Module:
    """The network with every batch norm taken out."""
    for name, child in model.named_children():
        setattr(model, name, nn.Identity() if isinstance(child, nn.BatchNorm2d) else _without(child))
    return model


def _contestant(name: str, net: Net) -> nn.Module:
    model = build(net.name)
    if name == "xhat":
        model = xt.convert(model)[0]
    elif name == "identity":
        model = _without(model)
    return model.to(memory_format=torch.channels_last) if net.layout == "NHWC" else model


def _batch(net: Net) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(net.batch, 3, net.pixels, net.pixels, generator=generator)
    x = x.to(memory_format=torch.channels_last) if net.layout == "NHWC" else x
    return x, torch.randint(10, (net.batch,), generator=generator)


def _gradients(model: nn.Module, x: torch.Tensor, labels: torch.Tensor) -> tuple[float, torch.Tensor]:
    """The loss, and all gradients as one vector in float64."""
    loss = nn.functional.cross_entropy(model(x), labels)
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.item(), torch.cat(
        [p.grad.double().flatten() for p in model.parameters() if p.grad is not None]
    )


def _verified(name: str, model: nn.Module, net: Net, exact: tuple[float, torch.Tensor]) -> float:
    """The relative error (L2) of the gradients. Raises Unverified out of tolerance."""
    loss, gradients = _gradients(deepcopy(model), *_batch(net))
    errors = {
        "loss": abs(loss - exact[0]) / abs(exact[0]),
        "gradients": float((gradients - exact[1]).norm() / exact[1].norm()),
    }
    for what, error in errors.items():
        if not error <= TOLERANCE[what]:
            raise Unverified(f"{name}: {what} of {net.label} are off by {error:.1e}.")
    return errors["gradients"]


def step_of(name: str, net: Net, model: nn.Module | None = None) -> Callable[[], Any]:
    """One training step of a contestant."""
    model = _contestant(name, net) if model is None else model
    x, labels = _batch(net)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def measure(net: Net, memory: str, rounds: int) -> Iterator[Row]:
    """Verifies the networks with batch norm, and times all."""
    x, labels = _batch(net)
    exact = _gradients(build(net.name).double(), x.double(), labels)
    entries, errors = {}, {}
    for name in CONTESTANTS:
        model = _contestant(name, net)
        errors[name] = _verified(name, model, net, exact) if name != "identity" else 0.0
        entries[name] = Entry(step_of(name, net, model))
    for name, timing in race(entries, rounds).items():
        yield _row(net, memory, "step", name, timing, errors[name])


def _row(
    net: Net, memory: str, what: str, name: str, figures: tuple[float, float, float], error: float
) -> Row:
    nbytes = 4 * 3 * net.batch * net.pixels**2
    shape = f"{net.batch}x3x{net.pixels}x{net.pixels}"
    setting = {"layout": net.layout, "dtype": "float32", "variant": net.name, "memory": memory}
    return Row(shape, what, name, nbytes, *figures, error, **setting)


# ---------------------------------------------------------------------------------------------------- memory


def peak_of_a_process(name: str, net: Net) -> float:
    """MB of resident memory that a few steps add to this process at their peak; to be called in its own process."""
    step, before = step_of(name, net), _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew: importing had one of its own
    for _ in range(PEAK_STEPS):
        step()
    return _resident("VmHWM") - before


def _resident(what: str) -> float:
    """VmRSS or VmHWM of this process in MB, as Linux tells it."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(fields[what].split()[0]) * 1024 / 1e6


def peaks(net: Net, memory: str) -> Iterator[Row]:
    """The peak of each contestant in a process of its own, with this one's environment; nothing except on Linux."""
    if not sys.platform.startswith("linux"):
        return
    for name in CONTESTANTS[:2]:
        code = (
            "from benchmarks.torch.cases import Net; from benchmarks.torch.steps import peak_of_a_process; "
            f"print(peak_of_a_process({name!r}, {net!r}))"
        )
        ended = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        )
        yield _row(net, memory, "peak", name, (float(ended.stdout.split()[-1]),) * 3, 0.0)
