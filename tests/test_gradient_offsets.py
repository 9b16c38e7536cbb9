"""dx is exact at every offset of dy, as y is at every offset of x: g loses its mean before anything is scaled.

The oracle gets x less one of its elements, which changes no gradient: its sums would lose digits far from zero.
"""

from itertools import product
from typing import Any

import ml_dtypes
import numpy as np
import oracle
import pytest
from conftest import ACTIVATIONS, Array

import xhat

OFFSETS = [0.0, 1e2, 1e4, 1e6]
LAYOUTS = {"NCHW": ((6, 5, 17, 19), 1), "NHWC": ((6, 17, 19, 5), -1), "(N, C)": ((2003, 5), 1)}
MASKS = ["none", "mask", "weights"]
BOUNDS: dict[Any, float] = {np.float32: 1e-6, np.float64: 1e-8, np.float16: 2**-11, ml_dtypes.bfloat16: 2**-8}


class Problem:
    """dy = normal + offset (w times the offset, behind a mask, so that the offset cancels there too)."""

    def __init__(
        self, where: str, dtype: Any, x_offset: float, offset: float, mask: str, strided: bool = False
    ) -> None:
        shape, self.axis = LAYOUTS[where]
        rng = np.random.default_rng(11)
        self.w: Any = None
        w: Any = 1.0
        if mask != "none":
            self.w = w = rng.uniform(
                size=[1 if a == self.axis % len(shape) else n for a, n in enumerate(shape)]
            )
            if mask == "mask":
                self.w = w > 0.3
        x, dy = rng.normal(size=shape) + x_offset, np.where(w, rng.normal(size=shape) + offset * w, 0)
        self.x, self.dy = x.astype(dtype), dy.astype(dtype)
        if strided:
            self.x, self.dy = (np.repeat(a, 2, axis=0)[::2][..., ::-1] for a in (self.x, self.dy))
        self.gamma, self.beta = rng.uniform(0.5, 1.5, 5), rng.normal(size=5)
        self.residual = rng.normal(size=shape).astype(dtype)

    def error(self, correction: int, activation: Any, residual: bool) -> float:
        """Of dx, in the L2 norm."""
        options: dict[str, Any] = {
            "axis": self.axis,
            "correction": correction,
            "activation": activation,
            "mask": self.w,
            "residual": self.residual if residual else None,
        }
        _, context = xhat.batch_norm(self.x, self.gamma, self.beta, **options)
        self.context = context
        dx = xhat.batch_norm_backward(self.dy, context).dx
        x: Array = oracle.wide(self.x) - oracle.wide(self.x).flat[0]
        self.expected = oracle.backward(self.dy, x, self.gamma, self.beta, **options).dx
        return oracle.relative_l2(dx, self.expected)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("offset", OFFSETS)
@pytest.mark.parametrize("x_offset", [0.0, 1e6])
@pytest.mark.parametrize("where", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dx_at_every_offset(dtype: Any, where: str, x_offset: float, offset: float, mask: str) -> None:
    p = Problem(where, dtype, x_offset, offset, mask)
    for correction, activation, residual in product((0, 1), ACTIVATIONS.values(), (False, True)):
        if activation is None and residual:
            continue
        case = correction, activation, residual
        assert p.error(*case) <= BOUNDS[dtype], case


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("offset", [8.0, 100.0])
@pytest.mark.parametrize("where", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_dx_of_sixteen_bits(dtype: Any, where: str, offset: float, mask: str) -> None:
    p = Problem(where, dtype, offset, offset, mask)
    for activation in ACTIVATIONS.values():
        assert p.error(0, activation, False) <= BOUNDS[dtype], activation


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("where", LAYOUTS)
def test_dx_of_strided_arrays(where: str, offset: float) -> None:
    for activation in ACTIVATIONS.values():
        assert Problem(where, np.float32, 0, offset, "none", strided=True).error(0, activation, False) <= 1e-6


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("where", LAYOUTS)
def test_the_paths_sum_to_dx(where: str, mask: str) -> None:
    p = Problem(where, np.float32, 1e6, 1e6, mask)
    for activation in ACTIVATIONS.values():
        p.error(0, activation, False)
        assert oracle.relative_l2(sum(xhat.gradient_paths(p.dy, p.context)), p.expected) <= 1e-6


@pytest.mark.parametrize("where", LAYOUTS)
def test_the_offset_would_cost_a_map_that_scales_first_its_digits(where: str) -> None:
    p = Problem(where, np.float32, 0, 1e6, "none")
    p.error(0, None, False)
    scale = np.float32(1) / np.sqrt(np.float32(1))
    shifted = scale * p.dy - scale * np.float32(1e6 + 1 / 3)
    exact = oracle.wide(p.dy) - (1e6 + oracle.WIDE(1) / 3)
    assert oracle.relative_l2(shifted, exact) > 1e-3
