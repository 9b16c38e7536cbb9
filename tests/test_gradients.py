"""The gradients against two independent witnesses: finite differences of the forward that ran, and autodiff.

Everything is float64. The kernels of the other dtypes are the same lines, held by the oracle elsewhere.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import oracle
import pytest
from conftest import ACTIVATIONS, LAYOUTS, MASKS, Array, Layout, away_from_the_kink, mask_of

import xhat
from xhat import ops

# Small, since every element is moved both ways.
SMALL: dict[str, Layout] = {
    "NCHW": Layout((2, 3, 2, 5), lambda a: a, 1),
    "NHWC": Layout((2, 2, 5, 3), lambda a: a.transpose(0, 3, 1, 2), 1),
    "(N, C)": Layout((7, 3), lambda a: a, 1),
    "(N, C, L)": Layout((2, 3, 5), lambda a: a, 1),
    "(N, L, C)": Layout((2, 5, 3), lambda a: a, -1),
    "channel first": Layout((3, 2, 5), lambda a: a, 0),
    "two channel axes": Layout((5, 2, 3), lambda a: a, (1, 2)),
    "every other": Layout((4, 6, 10), lambda a: a[::2, ::2, ::2], 1),
    "reversed": Layout((2, 3, 5), lambda a: a[:, ::-1, ::-1], 1),
    "cropped": Layout((2, 3, 4, 5), lambda a: a[:, :, 1:-1, 1:-1], 1, copied=True),
    "channels apart": Layout((2, 3, 4, 2), lambda a: a, (0, 2), copied=True),
}
STEP = 1e-5


class Case(NamedTuple):
    """Inputs that may be moved, fixed options, and dy."""

    inputs: dict[str, Array]
    options: dict[str, Any]
    dy: Array


def case_of(layout: Layout, mask: str, residual: bool, activation: str, correction: int) -> Case:
    """A batch whose pre-activations are away from a ReLU's kink where dy looks."""
    rng = np.random.default_rng(11)
    inputs = {
        "x": layout.array("gradients", scale=2, offset=3),
        "gamma": rng.uniform(0.5, 2, layout.channels),
        "beta": rng.normal(size=layout.channels),
    }
    if residual:
        inputs["residual"] = layout.array("gradients of the residual")
    options = {
        "axis": layout.axis,
        "eps": 1e-2,
        "correction": correction,
        "mask": mask_of(mask, layout, "gradients"),
        "activation": ACTIVATIONS[activation],
    }
    pre, _ = xhat.batch_norm(**inputs, **{**options, "activation": None})
    return Case(inputs, options, away_from_the_kink(layout.array("gradients of y"), pre, 1e-3))


def analytic(grads: Any) -> Iterator[tuple[str, Array]]:
    """The gradients by the name of what they belong to."""
    for name in ("x", "gamma", "beta", "residual"):
        gradient = getattr(grads, f"d{name}")
        if gradient is not None:
            yield name, gradient


@pytest.mark.parametrize("correction", [0, 1])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("where", SMALL)
def test_finite_differences(where: str, mask: str, residual: bool, activation: str, correction: int) -> None:
    inputs, options, dy = case_of(SMALL[where], mask, residual, activation, correction)

    def loss() -> float:
        return float((dy * xhat.batch_norm(**inputs, **options)[0]).sum())

    _, context = xhat.batch_norm(**inputs, **options)
    found = dict(analytic(xhat.batch_norm_backward(dy, context)))
    assert found.keys() == inputs.keys()
    for name, gradient in found.items():
        expected = oracle.by_differences(loss, inputs[name], STEP)
        assert gradient == pytest.approx(expected, rel=1e-6, abs=2e-8), name


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("where", SMALL)
def test_finite_differences_of_evaluation(where: str, residual: bool, activation: str) -> None:
    """With fixed moments, which are constants of the differentiation."""
    inputs, options, dy = case_of(SMALL[where], "none", residual, activation, 0)
    kept = {k: options[k] for k in ("axis", "eps", "activation")}
    fixed = {"mean": np.full(SMALL[where].channels, 2.5), "var": np.full(SMALL[where].channels, 3.5)}
    dy[...] = np.where(
        np.abs(xhat.normalize(**inputs, **fixed, **{**kept, "activation": None})) < 1e-3, 0, dy
    )

    def loss() -> float:
        return float((dy * xhat.normalize(**inputs, **fixed, **kept)).sum())

    _, context = ops.normalize_with_context(**inputs, **fixed, **kept)
    for name, gradient in analytic(xhat.batch_norm_backward(dy, context)):
        assert gradient == pytest.approx(
            oracle.by_differences(loss, inputs[name], STEP), rel=1e-6, abs=2e-8
        ), name


def torch_gradients(torch: Any, case: Case) -> dict[str, Array]:
    """PyTorch's autodiff of the definition, written in elementary operations, not with its batch norm."""
    leaves = {k: torch.tensor(v.copy(), requires_grad=True) for k, v in case.inputs.items()}
    x, o = leaves["x"], case.options
    axes = o["axis"] if isinstance(o["axis"], tuple) else (o["axis"],)
    channels = sorted(a % x.ndim for a in axes)
    others = [a for a in range(x.ndim) if a not in channels]
    shape = [x.shape[a] if a in channels else 1 for a in range(x.ndim)]
    w = torch.ones_like(x) if o["mask"] is None else torch.tensor(o["mask"].astype(np.float64)).expand_as(x)
    m = w.sum(dim=others, keepdim=True)
    mean = (w * x).sum(dim=others, keepdim=True) / m
    var = (w * (x - mean) ** 2).sum(dim=others, keepdim=True) / (m - o["correction"])
    pre = (x - mean) / torch.sqrt(var + o["eps"]) * leaves["gamma"].reshape(shape) + leaves["beta"].reshape(
        shape
    )
    pre = pre + leaves.get("residual", 0)
    name, slope = o["activation"] if isinstance(o["activation"], tuple) else (o["activation"], 0.0)
    if name == "silu":
        pre = torch.nn.functional.silu(pre)
    elif name is not None:
        pre = torch.nn.functional.leaky_relu(pre, slope)
    pre.backward(torch.tensor(np.ascontiguousarray(case.dy)))
    return {k: v.grad.numpy() for k, v in leaves.items()}


@pytest.mark.parametrize("correction", [0, 1])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("residual", [False, True], ids=["", "residual"])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("where", LAYOUTS)
def test_autodiff(where: str, mask: str, residual: bool, activation: str, correction: int) -> None:
    torch = pytest.importorskip("torch")
    case = case_of(LAYOUTS[where], mask, residual, activation, correction)
    _, context = xhat.batch_norm(**case.inputs, **case.options)
    grads = xhat.batch_norm_backward(case.dy, context)
    expected = torch_gradients(torch, case)
    for name, gradient in analytic(grads):
        assert gradient == pytest.approx(expected[name], rel=1e-12, abs=1e-12), name


def test_a_wrong_gradient_is_seen() -> None:
    """The slip that the two conventions invite: forward with m, backward with m - 1."""
    inputs, options, dy = case_of(SMALL["(N, C)"], "none", False, "none", 0)
    _, context = xhat.batch_norm(**inputs, **{**options, "correction": 1})
    wrong = xhat.batch_norm_backward(dy, context).dx
    expected = oracle.by_differences(
        lambda: float((dy * xhat.batch_norm(**inputs, **options)[0]).sum()), inputs["x"], STEP
    )
    assert wrong != pytest.approx(expected, rel=1e-3, abs=1e-3)
