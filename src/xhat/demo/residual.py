"""A residual network in PyTorch on the same digits, trained twice from the same seed: unchanged, and after `convert`.

The two trainings alternate step by step on the same batches, so that their times are comparable. Nothing is printed.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import xhat.torch as xt
from xhat.demo.training import Digits, batches

__all__ = [
    "BATCH",
    "MOMENTUM",
    "PIXELS",
    "RATE",
    "Network",
    "Twin",
    "accuracy_of",
    "disagreement",
    "images",
    "made",
    "step",
    "train_twins",
]

PIXELS = 16  # the 8 x 8 pixels of a digit, enlarged
BATCH = 128
RATE, MOMENTUM = 0.05, 0.9
WIDTHS = (16, 32, 64)


class Block(nn.Module):
    """y = silu(bn(conv(silu(bn(conv(x))))) + shortcut(x)): the basic block of He et al., 2016, with SiLU."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.silu = nn.SiLU()
        self.shortcut = nn.Sequential()
        if stride != 1:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """y."""
        y = self.silu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y)) + self.shortcut(x)
        out: Tensor = self.silu(y)
        return out


class Network(nn.Sequential):
    """A convolution with batch norm and SiLU, a block for each width, the mean over the pixels, ten logits."""

    def __init__(self) -> None:
        first = WIDTHS[0]
        blocks = [Block(max(w // 2, first), w, 1 if w == first else 2) for w in WIDTHS]
        stem = [nn.Conv2d(1, first, 3, 1, 1, bias=False), nn.BatchNorm2d(first), nn.SiLU()]
        super().__init__(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(WIDTHS[-1], 10))


@dataclass
class Twin:
    """One of the two trainings: its network and its measurements."""

    name: str
    network: nn.Module
    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # of each step
    kept: float = 0.0  # MB of saved tensors of a step, without parameters and input
    accuracy: float = 0.0  # share of the held-out digits classified correctly at the end

    @property
    def step_time(self) -> float:
        """The median time of a step in ms, without the first steps (warm-up) if there are more."""
        return 1e3 * float(np.median(self.seconds[5:] or self.seconds))


def images(x: Any) -> Tensor:
    """Rows of 64 pixels as enlarged images (n, 1, PIXELS, PIXELS)."""
    small = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32)).reshape(-1, 1, 8, 8)
    return nn.functional.interpolate(small, size=PIXELS, mode="bilinear")


def train_twins(
    digits: Digits, *, steps: int, seed: int, advance: Callable[[], None]
) -> tuple[Twin, Twin, list[xt.Change]]:
    """Both trainings (SGD with momentum), and the changes of `convert`; `advance` is called after each step of both."""
    converted, changes = xt.convert(made(seed))
    twins = Twin("torch's layers", made(seed)), Twin("after xt.convert", converted)
    optimizers = [torch.optim.SGD(t.network.parameters(), lr=RATE, momentum=MOMENTUM) for t in twins]
    x, labels = images(digits.x), torch.from_numpy(digits.labels).long()
    for twin in twins:
        twin.kept = _kept(twin.network, x[:BATCH])
    for turn, rows in zip(range(steps), batches(len(x), seed, BATCH), strict=False):
        turns = list(zip(twins, optimizers, strict=True))
        for twin, optimizer in turns if turn % 2 else turns[::-1]:  # alternate which one is first
            start = perf_counter()
            loss = step(twin.network, optimizer, x[rows], labels[rows])
            twin.seconds.append(perf_counter() - start)
            twin.losses.append(loss.item())
        advance()
    for twin in twins:
        twin.accuracy = accuracy_of(twin.network, digits)
    return *twins, changes


def made(seed: int) -> Network:
    """A network whose weights follow from the seed. The random state of the caller stays."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Network()


def step(network: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, labels: Tensor) -> Tensor:
    """One step of the optimizer; returns the loss before it."""
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(network(x), labels)
    loss.backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    return loss.detach()


def _kept(network: nn.Module, x: Tensor) -> float:
    """MB of tensors that autograd saves for the backward pass, each storage once. The network is not changed."""
    state = {name: value.clone() for name, value in network.state_dict().items()}
    known = {value.untyped_storage().data_ptr() for value in (x, *network.state_dict().values())}
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        y = network(x)
    network.load_state_dict(state)
    del y  # all saved tensors were alive until here, so no address was reused
    return sum(size for place, size in sizes.items() if place not in known) / 1e6


def accuracy_of(network: nn.Module, digits: Digits) -> float:
    """The share of the held-out digits that the network reads, in evaluation."""
    network.eval()
    with torch.no_grad():
        read = network(images(digits.held_x)).argmax(dim=1).numpy()
    network.train()
    return float(np.mean(read == digits.held_labels))


def disagreement(pair: tuple[Twin, Twin]) -> Any:
    """The relative difference of the losses of each step."""
    a, b = (np.array(twin.losses) for twin in pair)
    return np.abs(a - b) / np.maximum(a, b)
