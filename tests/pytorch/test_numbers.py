"""y, the gradients and the running statistics: against the oracle, and beside torch's own layers.

Every layout, dtype and option; then where torch's own numbers are wrong, with both errors side by side.
"""

from typing import Any

import numpy as np
import oracle
import pytest
import torch
from conftest import EPSILON
from definition import (
    ACTIVATIONS,
    DTYPES,
    LAYOUTS,
    NO_BIAS,
    Problem,
    batch,
    generator,
    numbers,
    option_sets,
    problem,
)
from torch import Tensor, nn

import xhat.torch as xt

LAYERS: dict[int, Any] = {2: xt.BatchNorm1d, 3: xt.BatchNorm1d, 4: xt.BatchNorm2d, 5: xt.BatchNorm3d}
THEIRS: dict[int, Any] = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}

MOMENTUM, EPS = 0.3, 1e-3
# Of a whole tensor, in the Euclidean norm; of dx, relative to gamma rstd dy, which cancels where a channel is short.
FACTORS = {"float64": 10, "float32": 4, "float16": 1, "bfloat16": 1}
TOLERANCE = {name: epsilon * FACTORS[name] for name, epsilon in EPSILON.items()}


def running(channels: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Running statistics that differ from channel to channel."""
    g = generator("running")
    mean = torch.randn(channels, generator=g, dtype=torch.float64)
    return mean.to(dtype), (torch.rand(channels, generator=g, dtype=torch.float64) + 0.5).to(dtype)


def check(p: Problem, training: bool, tolerance: float, **options: Any) -> None:
    """y, dx, dweight, dbias, dresidual and the running statistics of one call, against the oracle."""
    mean, var = running(p.x.shape[1], torch.float64 if p.x.dtype == torch.float64 else torch.float32)
    arguments = dict(residual=numbers(p.residual), eps=EPS, **options)
    arguments |= dict(mask=numbers(p.mask)) if training else dict(fixed=(numbers(mean), numbers(var)))
    arguments |= dict(gamma=numbers(p.weight), beta=numbers(p.bias))
    x = numbers(p.x)
    expected = oracle.forward(x, **arguments)
    seen = oracle.moments(x, mask=numbers(p.mask) if training else None)
    leaves = p.leaves()
    y = xt.batch_norm(leaves.x, mean, var, leaves.weight, leaves.bias, training, MOMENTUM, EPS, mask=p.mask,
                      residual=leaves.residual, **options)  # fmt: skip
    dy = torch.randn(p.x.shape, generator=generator("dy"), dtype=torch.float64).to(p.x.dtype)
    if options.get("activation") not in (None, "silu"):  # where rounding decides the slope, dy does not look
        dy[torch.from_numpy(np.abs(expected.pre.astype(float)) < 30 * tolerance)] = 0
    y.backward(dy)
    back = oracle.backward(numbers(dy), x, **arguments)
    pairs = {"y": (y, expected.y), "dx": (leaves.x.grad, back.dx)}
    for name, leaf, gradient in (
        ("dweight", leaves.weight, back.dgamma),
        ("dbias", leaves.bias, back.dbeta),
        ("dresidual", leaves.residual, back.dpre),
    ):
        if leaf is not None:
            assert leaf.grad is not None and leaf.grad.dtype == leaf.dtype
            pairs[name] = (leaf.grad, gradient)
    direct = dx_alone(back.dpre, expected.rstd, p)
    errors = {name: oracle.relative_l2(numbers(got), expected) for name, (got, expected) in pairs.items()}
    errors["dx"] *= float(np.linalg.norm(back.dx.astype(float)) / direct)
    assert y.dtype == p.x.dtype
    assert max(errors.values()) < tolerance, errors
    check_running(mean, var, seen if training else None)


def dx_alone(dpre: Any, rstd: Any, p: Problem) -> float:
    """|gamma rstd dpre|."""
    scale = rstd * (1 if p.weight is None else oracle.wide(numbers(p.weight)))
    return float(np.linalg.norm((dpre * oracle.on_channels(scale, dpre, 1)).astype(float)))


def check_running(mean: Tensor, var: Tensor, seen: Any) -> None:
    """The running statistics followed the batch, or stayed as they were."""
    old_mean, old_var = (oracle.wide(numbers(t)) for t in running(len(mean), mean.dtype))
    k = oracle.WIDE(MOMENTUM if seen is not None else 0)
    new_mean = old_mean + k * ((seen.mean if seen else 0) - old_mean)
    new_var = old_var + k * ((seen.m2 / (seen.m - 1) if seen else 0) - old_var)
    limit = TOLERANCE[str(mean.dtype).removeprefix("torch.")]
    assert oracle.relative_l2(numbers(mean), new_mean) < limit
    assert oracle.relative_l2(numbers(var), new_var) < limit


# ------------------------------------------------------------------------------------------------------ the oracle


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_and_dtype(layout: str, dtype: str, training: bool) -> None:
    x = batch(layout, dtype=DTYPES[dtype])
    check(problem(x), training, TOLERANCE[dtype])
    check(
        problem(x, residual=True, mask="weights"), training, TOLERANCE[dtype], activation="silu", correction=1
    )


@pytest.mark.parametrize("layout", ["NCHW", "NHWC", "cropped"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_every_option(layout: str, dtype: str, training: bool) -> None:
    x = batch(layout, "options", DTYPES[dtype])
    for options in option_sets(training):
        p = problem(x, options.pop("affine"), options.pop("residual"), options.pop("mask"))
        options["activation"] = ACTIVATIONS[options["activation"]]
        check(p, training, TOLERANCE[dtype], **options)


@pytest.mark.parametrize(
    "shape",
    [(2, 1), (2, 3, 1), (1, 3, 7), (1, 1, 2, 1), (1, 1, 1, 1, 2), (127, 3), (2, 131, 3), (5, 3, 1009), (3, 257, 2, 2),
     (1031, 17)],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_sizes_that_are_prime_one_and_large(shape: tuple[int, ...], dtype: str, training: bool) -> None:
    x = torch.randn(shape, generator=generator("sizes"), dtype=DTYPES[dtype])
    check(problem(x), training, TOLERANCE[dtype])


MIXED = [("bfloat16", "float32"), ("float16", "float32"), ("float64", "float32"), ("float32", "float64"),
         ("bfloat16", "float64"), ("float32", "bfloat16"), ("float16", "bfloat16")]  # fmt: skip


@pytest.mark.parametrize(("dtype", "parameters"), MIXED)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_mixed_dtypes(dtype: str, parameters: str, training: bool) -> None:
    """Each gradient in its own dtype; torch refuses some of these mixtures."""
    p = problem(batch("NCHW", dtype=DTYPES[dtype]), dtype=DTYPES[parameters])
    check(p, training, max(TOLERANCE[dtype], TOLERANCE[parameters]))


def test_autocast_is_torchs() -> None:
    """Batch norm is on neither list of autocast: y has x's dtype, statistics are float32."""
    for x in (batch("NCHW").float(), batch("NCHW").bfloat16()):
        ours, theirs = xt.BatchNorm2d(5), nn.BatchNorm2d(5)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y, expected = ours(x), theirs(x)
        y.float().square().sum().backward()
        assert y.dtype == expected.dtype == x.dtype
        torch.testing.assert_close(y, expected)
        assert ours.weight.grad is not None and ours.weight.grad.dtype == torch.float32


# ------------------------------------------------------------------------------------------------- torch's own layer


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_torchs_layer_gives_the_same(layout: str, dtype: str) -> None:
    """y, dx, dweight, dbias, the memory format and the state, over three steps of training and one of evaluation."""
    kind = DTYPES[dtype]
    for options in (
        {},
        {"momentum": None},
        {"affine": False},
        {"track_running_stats": False},
        NO_BIAS,
    ):
        x = batch(layout, dtype=kind)
        wide = kind if kind.itemsize >= 4 else torch.float32
        theirs = THEIRS[x.dim()](5, eps=EPS, dtype=wide, **options)
        ours = LAYERS[x.dim()](5, eps=EPS, dtype=wide, **options)
        for step in range(4):
            ours.train(step < 3)
            theirs.train(step < 3)
            beside(ours, theirs, batch(layout, f"step {step}", kind))
        assert list(ours.state_dict()) == list(theirs.state_dict())
        for name, value in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], value, msg=f"{options}: {name}")


def beside(ours: nn.Module, theirs: nn.Module, x: Tensor) -> None:
    """One forward and backward pass of both."""
    dy = torch.randn(x.shape, generator=generator("dy"), dtype=torch.float64).to(x.dtype)
    found = []
    for layer in (ours, theirs):
        layer.zero_grad()
        leaf = x.detach().requires_grad_()
        y = layer(leaf)
        y.backward(dy)
        found.append((y.detach(), leaf.grad, *(p.grad for p in layer.parameters())))
        strides = y.stride()
    # bfloat16 sums in torch's channels_last kernels are off by more than a rounding.
    loose = dict(rtol=0.05, atol=0.05) if x.dtype.itemsize == 2 else {}
    torch.testing.assert_close(found[0], found[1], **loose)
    if x.is_contiguous() or x.is_contiguous(memory_format=memory_format(x)):
        assert found[0][0].stride() == strides


def memory_format(x: Tensor) -> torch.memory_format:
    """What channels last is called for this many dimensions."""
    known = {4: torch.channels_last, 5: torch.channels_last_3d}
    return known.get(x.dim(), torch.contiguous_format)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_result_keeps_the_memory_format(layout: str) -> None:
    """y and dx lie as empty_like says; torch's own layer makes some of these contiguous."""
    x = batch(layout, dtype=torch.float32).requires_grad_()
    y = LAYERS[x.dim()](5)(x)
    y.sum().backward()
    assert x.grad is not None
    expected = torch.empty_like(x.detach())
    assert y.stride() == expected.stride()
    assert x.grad.stride() == expected.stride()
