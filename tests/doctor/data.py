"""Small real data that packages bring along: nothing is downloaded, nothing is kept on disk.

The thresholds of the doctor were chosen on a 2-d network for scikit-learn's digits; the cases use these data otherwise.
"""

from collections.abc import Iterator
from functools import cache

import numpy as np
import torch
from sklearn import datasets
from torch import Tensor

Batches = list[tuple[Tensor, Tensor]]


@cache
def table(name: str) -> tuple[Tensor, Tensor]:
    """Standardized features, and labels (for diabetes, a standardized target): wine, iris, breast_cancer, diabetes."""
    found = getattr(datasets, f"load_{name}")()
    x = found.data - found.data.mean(axis=0)
    x, y = x / x.std(axis=0), found.target
    y = torch.tensor(y) if name != "diabetes" else torch.tensor((y - y.mean()) / y.std()).float()[:, None]
    return torch.tensor(x).float(), y


@cache
def raw_table(name: str) -> tuple[Tensor, Tensor]:
    """The features as they were measured."""
    found = getattr(datasets, f"load_{name}")()
    return torch.tensor(found.data).float(), torch.tensor(found.target)


@cache
def digit_sequences() -> tuple[Tensor, Tensor]:
    """Each digit as a sequence of eight columns with eight values: (1797, 8, 8), for 1-d networks."""
    images, y = datasets.load_digits(return_X_y=True)
    x = torch.tensor(images).float().reshape(-1, 8, 8).transpose(1, 2)
    return (x - x.mean()) / x.std(), torch.tensor(y)


@cache
def digit_images(size: int = 32) -> tuple[Tensor, Tensor]:
    """Digits in three channels, enlarged for the networks of timm."""
    images, y = datasets.load_digits(return_X_y=True)
    x = torch.tensor(images).float().reshape(-1, 1, 8, 8)
    x = torch.nn.functional.interpolate((x - x.mean()) / x.std(), size, mode="bilinear")
    return x.expand(-1, 3, -1, -1).contiguous(), torch.tensor(y)


@cache
def photographs() -> tuple[Tensor, Tensor]:
    """The two photographs of scikit-learn, a temple and a flower, as (3, 427, 640) between 0 and 1."""
    temple, flower = (
        torch.tensor(image / 255).float().movedim(-1, 0) for image in datasets.load_sample_images().images
    )
    return temple, flower


@cache
def patches(size: int = 16, count: int = 800, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Random squares of the photographs; the label is the part of which they are: one of 2, or of 4 (halves)."""
    rng, x, y = np.random.default_rng(size), [], []
    for k in range(count):
        part = k % classes
        photograph = photographs()[part % 2]
        half = photograph.shape[2] // (classes // 2)
        top = rng.integers(photograph.shape[1] - size)
        left = part // 2 * half + rng.integers(half - size)
        x.append(photograph[:, top : top + size, left : left + size])
        y.append(part)
    return (torch.stack(x) - 0.4) / 0.25, torch.tensor(y)


@cache
def clips(frames: int = 4, size: int = 12, count: int = 400) -> tuple[Tensor, Tensor]:
    """Short films (count, 3, frames, size, size) of a window that moves over a photograph; the label is the part."""
    rng, steps = np.random.default_rng(frames), [(0, 3), (0, -3), (3, 0), (-3, 0)]
    x, y = [], []
    for k in range(count):
        down, right = steps[rng.integers(4)]
        photograph = photographs()[k % 2]
        top, left = rng.integers(20, 400 - 20 - size), k % 4 // 2 * 310 + rng.integers(20, 290)
        corners = [(top + t * down, left + t * right) for t in range(frames)]
        x.append(torch.stack([photograph[:, a : a + size, b : b + size] for a, b in corners], dim=1))
        y.append(k % 4)
    return (torch.stack(x) - 0.4) / 0.25, torch.tensor(y)


def noisy(size: int = 16, count: int = 400, sigma: float = 0.6) -> tuple[Tensor, Tensor]:
    """Patches with noise, and without: for networks that remove it."""
    clean, _ = patches(size, count)
    return clean + sigma * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0)), clean


def batches(x: Tensor, y: Tensor, size: int, seed: int = 0, last: bool = False) -> Batches:
    """One epoch in random order; the last, smaller batch is left out unless it is wanted."""
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    return in_order(x[order], y[order], size, last)


def in_order(x: Tensor, y: Tensor, size: int, last: bool = False) -> Batches:
    """One epoch as the data lie."""
    parts = zip(x.split(size), y.split(size), strict=True)
    return [(a, b) for a, b in parts if last or len(a) == size]


def by_class(x: Tensor, y: Tensor, size: int, seed: int = 0) -> Batches:
    """One epoch with batches of one class each, in random order."""
    generator = torch.Generator().manual_seed(seed)
    found = [part for label in y.unique() for part in batches(x[y == label], y[y == label], size, seed)]
    return [found[k] for k in torch.randperm(len(found), generator=generator)]


def endless(x: Tensor, y: Tensor, size: int, seed: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Epochs without an end."""
    while True:
        yield from batches(x, y, size, seed)
        seed += 1
