"""Batch normalization by its definition, in float64 operations of torch, which differentiates them; and what it is
asked about: layouts, options, problems.

Nothing of xhat may be imported here, and nothing clever may be written here. `oracle` is the witness for values and
first gradients, in wider arithmetic; this one is for gradients of higher order and for transforms.
"""

import itertools
import zlib
from collections.abc import Callable, Iterator
from inspect import signature
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

# From sizes that are all distinct, so that two axes taken for one another change the result.
LAYOUTS: dict[str, Callable[[torch.Generator], Tensor]] = {
    "NCHW": lambda g: torch.randn(3, 5, 4, 7, generator=g, dtype=torch.float64),
    "NHWC": lambda g: torch.randn(3, 4, 7, 5, generator=g, dtype=torch.float64).permute(0, 3, 1, 2),
    "NCDHW": lambda g: torch.randn(2, 5, 3, 4, 7, generator=g, dtype=torch.float64),
    "NDHWC": lambda g: torch.randn(2, 3, 4, 7, 5, generator=g, dtype=torch.float64).permute(0, 4, 1, 2, 3),
    "(N, C)": lambda g: torch.randn(37, 5, generator=g, dtype=torch.float64),
    "(N, C, L)": lambda g: torch.randn(3, 5, 11, generator=g, dtype=torch.float64),
    "(N, L, C)": lambda g: torch.randn(3, 11, 5, generator=g, dtype=torch.float64).transpose(1, 2),
    "transposed": lambda g: torch.randn(5, 37, generator=g, dtype=torch.float64).T,
    "HWNC": lambda g: torch.randn(4, 7, 3, 5, generator=g, dtype=torch.float64).permute(2, 3, 0, 1),
    "every other": lambda g: torch.randn(6, 10, 4, 14, generator=g, dtype=torch.float64)[::2, ::2, :, ::2],
    "cropped": lambda g: torch.randn(3, 5, 6, 11, generator=g, dtype=torch.float64)[:, :, 1:-1, 2:-2],
    "expanded": lambda g: torch.randn(3, 5, 1, 7, generator=g, dtype=torch.float64).expand(3, 5, 4, 7),
}
DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
MASKS = ("none", "bool", "weights")
ACTIVATIONS: dict[str, Any] = {
    "none": None,
    "relu": "relu",
    "leaky_relu": ("leaky_relu", 0.1),
    "silu": "silu",
}
AFFINE = ("affine", "no bias", "not affine")
# The options of a layer without a bias, which torch's layers have as an argument since 2.13.
NO_BIAS: dict[str, Any] = {"bias": False} if "bias" in signature(nn.BatchNorm1d).parameters else {}


def generator(seed: str) -> torch.Generator:
    """Random numbers by a name."""
    return torch.Generator().manual_seed(zlib.crc32(seed.encode()))


def batch(layout: str, seed: str = "x", dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal numbers in this layout, with the strides that it says in this dtype as well."""
    x = LAYOUTS[layout](generator(seed))
    if dtype == x.dtype:
        return x
    out = torch.empty_strided(x.shape, x.stride(), dtype=dtype) if layout != "expanded" else x.to(dtype)
    return x[:, :, :1].to(dtype).expand(x.shape) if layout == "expanded" else out.copy_(x)


class Problem(NamedTuple):
    """The tensors of one call."""

    x: Tensor
    weight: Tensor | None = None
    bias: Tensor | None = None
    residual: Tensor | None = None
    mask: Tensor | None = None

    def leaves(self) -> "Problem":
        """The same numbers and strides; what is differentiable asks for its gradient."""
        inputs = (None if t is None else t.detach().requires_grad_() for t in self[:4])
        return Problem(*inputs, self.mask)  # type: ignore[arg-type]

    @property
    def asked(self) -> list[Tensor]:
        """What asks for a gradient."""
        return [t for t in self[:4] if t is not None and t.requires_grad]


def problem(
    x: Tensor,
    affine: str = "affine",
    residual: bool = False,
    mask: str = "none",
    dtype: torch.dtype | None = None,
    seed: str = "problem",
) -> Problem:
    """Parameters, residual and mask for x; dtype is the parameters'."""
    g, channels = generator(seed), x.shape[1]
    weight = torch.rand(channels, generator=g, dtype=torch.float64) * 1.5 + 0.5
    weight[::2] *= -1
    bias = torch.randn(channels, generator=g, dtype=torch.float64)
    added = torch.randn(x.shape, generator=g, dtype=torch.float64)
    w = torch.rand([1 if a == 1 else n for a, n in enumerate(x.shape)], generator=g, dtype=torch.float64)
    keep = w < 0.7
    keep.view(-1)[:3] = torch.tensor([True, False, True])[: keep.numel()]
    dtype = x.dtype if dtype is None else dtype
    return Problem(
        x,
        None if affine == "not affine" else weight.to(dtype),
        bias.to(dtype) if affine == "affine" else None,
        added.to(x.dtype) if residual else None,
        {"none": None, "bool": keep, "weights": keep * (0.2 + 3 * w)}[mask],
    )


def option_sets(training: bool) -> Iterator[dict[str, Any]]:
    """Every combination of what one call may ask for; in evaluation, of what makes a difference there."""
    corrections, masks = ((0, 1), MASKS) if training else ((0,), ("none",))
    for correction, mask, residual, activation, affine in itertools.product(
        corrections, masks, (False, True), ACTIVATIONS, AFFINE
    ):
        yield dict(correction=correction, mask=mask, residual=residual, activation=activation, affine=affine)


class Defined(NamedTuple):
    """y, what the activation was asked about, and the statistics; all of them float64 and differentiable."""

    y: Tensor
    pre: Tensor
    mean: Tensor
    var: Tensor
    m: Tensor


def definition(
    p: Problem,
    statistics: tuple[Tensor, Tensor] | None = None,
    *,
    eps: float = 1e-5,
    correction: int = 0,
    activation: Any = None,
) -> Defined:
    """y = act(weight (x - mean) / sqrt(var + eps) + bias + residual); `statistics`: evaluation's mean and var."""
    x = p.x.double()
    column = [1, -1, *[1] * (x.dim() - 2)]
    axes = [0, *range(2, x.dim())]
    w = torch.ones_like(x[:, :1]) if p.mask is None else p.mask.double().expand(x[:, :1].shape)
    m = w.sum()
    if statistics is None:
        mean = (w * x).sum(axes, keepdim=True) / m
        var = (w * (x - mean) ** 2).sum(axes, keepdim=True) / (m - correction)
    else:
        mean, var = (s.double().reshape(column) for s in statistics)
    pre = (x - mean) / torch.sqrt(var + eps)
    pre = pre if p.weight is None else pre * p.weight.double().reshape(column)
    pre = pre if p.bias is None else pre + p.bias.double().reshape(column)
    pre = pre if p.residual is None else pre + p.residual.double()
    return Defined(activated(pre, activation), pre, mean.reshape(-1), var.reshape(-1), m)


def activated(pre: Tensor, activation: Any) -> Tensor:
    """The activations by torch's functions."""
    if activation is None:
        return pre
    if activation == "silu":
        return F.silu(pre)
    return F.relu(pre) if activation == "relu" else F.leaky_relu(pre, activation[1])


def numbers(t: Tensor | None) -> Any:
    """The numbers as a NumPy array, for the oracle."""
    return None if t is None else np.asarray(t.detach().double().resolve_conj().resolve_neg())


def relative(got: Tensor, expected: Tensor) -> float:
    """|got - expected| / |expected|, in the Euclidean norm."""
    assert got.shape == expected.shape
    got, expected = got.detach().double(), expected.detach().double()
    size = expected.norm()
    return float((got - expected).norm() / (size if size else 1))
