"""The computational graph: forward values, local derivatives, and a traversal with the gradients of the kernels."""

from typing import Any

import numpy as np
import oracle
import pytest
from conftest import LAYOUTS, MASKS, Layout, mask_of

import xhat
from xhat.errors import ShapeError
from xhat.lens import graph

TOLERANCE = 1e-13


def case(layout: Layout, mask: str = "none", offset: float = 0.5) -> tuple[Any, ...]:
    """x, dy, gamma, beta and the options, in float64."""
    x = layout.array("x", scale=1.7, offset=offset)
    rng = np.random.default_rng(5)
    gamma, beta = rng.normal(size=layout.channels), rng.normal(size=layout.channels)
    options = {"axis": layout.axis, "eps": 1e-3, "mask": mask_of(mask, layout, "mask")}
    return x, layout.array("dy"), gamma, beta, options


def test_every_node_comes_after_its_inputs() -> None:
    place = {node.name: i for i, node in enumerate(graph.NODES)}
    assert len(place) == len(graph.NODES) == 9
    assert all(place[edge.source] < place[edge.target] for edge in graph.EDGES)
    reached = {edge.target for edge in graph.EDGES}
    assert {node.name for node in graph.NODES} - reached == {"x", "gamma", "beta"}


@pytest.mark.parametrize("correction", [0, 1])
@pytest.mark.parametrize("mask", MASKS)
def test_the_traversal_gives_the_kernels_gradients(layout: Layout, mask: str, correction: int) -> None:
    x, dy, gamma, beta, options = case(layout, mask)
    found = graph.evaluate(x, dy, gamma, beta, correction=correction, **options)
    y, context = xhat.batch_norm(x, gamma, beta, correction=correction, **options)
    grads = xhat.batch_norm_backward(dy, context)
    assert oracle.relative_l2(found.values["y"], y) < TOLERANCE
    assert oracle.relative_l2(found.gradients["x"], grads.dx) < TOLERANCE
    assert oracle.relative_l2(found.gradients["gamma"], grads.dgamma) < TOLERANCE
    assert oracle.relative_l2(found.gradients["beta"], grads.dbeta) < TOLERANCE
    for path, closed in zip(found.paths, xhat.gradient_paths(dy, context), strict=True):
        assert oracle.relative_l2(path, closed) < TOLERANCE


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", ["NCHW", "two channel axes", "channels apart"])
def test_values_and_gradients_agree_with_the_oracle(name: str, mask: str) -> None:
    x, dy, gamma, beta, options = case(LAYOUTS[name], mask, offset=300)
    found = graph.evaluate(x, dy, gamma, beta, correction=1, **options)
    forward = oracle.forward(x, gamma, beta, correction=1, **options)
    backward = oracle.backward(dy, x, gamma, beta, correction=1, **options)
    for node, expected in {
        "mu": forward.mean,
        "var": forward.var,
        "rstd": forward.rstd,
        "y": forward.y,
    }.items():
        assert found.values[node].shape == expected.shape
        assert oracle.relative_l2(found.values[node], expected) < 1e-11
    for node, expected in {"x": backward.dx, "gamma": backward.dgamma, "beta": backward.dbeta}.items():
        assert found.gradients[node].shape == expected.shape
        assert oracle.relative_l2(found.gradients[node], expected) < 1e-11


# The formulas of the nodes, independent of `graph`: each a function of the nodes before it.
FORMULAS: dict[str, Any] = {
    "mu": lambda v: np.sum(v["w"] * v["x"], axis=1, keepdims=True) / v["m"],
    "var": lambda v: np.sum(v["w"] * (v["x"] - v["mu"]) ** 2, axis=1, keepdims=True) / (v["m"] - v["c"]),
    "rstd": lambda v: (v["var"] + v["eps"]) ** -0.5,
    "xhat": lambda v: (v["x"] - v["mu"]) * v["rstd"],
    "y": lambda v: v["gamma"] * v["xhat"] + v["beta"],
    "loss": lambda v: np.sum(v["dy"] * v["y"], axis=1, keepdims=True),
}


def one_channel() -> dict[str, Any]:
    """The values of all nodes, by the formulas above, for one channel of five elements with weights."""
    rng = np.random.default_rng(11)
    v: dict[str, Any] = {
        "x": rng.normal(2, 3, (1, 5)),
        "w": np.array([[1, 0.5, 2, 1, 0]]),
        "dy": rng.normal(size=(1, 5)),
    }
    v |= {"gamma": np.array([[1.5]]), "beta": np.array([[-0.3]]), "c": 1, "eps": 0.1, "m": np.array([[4.5]])}
    for name, formula in FORMULAS.items():
        v[name] = formula(v)
    return v


@pytest.mark.parametrize("edge", graph.EDGES, ids=lambda edge: f"{edge.source} to {edge.target}")
def test_each_local_derivative_is_that_of_its_node_alone(edge: graph.Edge) -> None:
    v = one_channel()
    slope = np.broadcast_to(edge.local(v), np.broadcast_shapes(v[edge.source].shape, v[edge.target].shape))
    step = 1e-6
    for i in range(v[edge.source].size):
        moved = []
        for sign in (1, -1):
            source = v[edge.source].copy()
            source.flat[i] += sign * step
            moved.append(FORMULAS[edge.target](v | {edge.source: source}))
        difference = (moved[0] - moved[1]) / (2 * step)
        # Element i of x affects element i of xhat only; every other source affects all elements of its target.
        both_long = v[edge.source].size == v[edge.target].size > 1
        expected = (
            np.eye(5)[i] * slope if both_long else slope[:, i : i + 1] if v[edge.source].size > 1 else slope
        )
        np.testing.assert_allclose(difference, expected, atol=1e-8)


def test_the_zero_path_vanishes_because_deviations_sum_to_zero() -> None:
    x, dy, gamma, beta, options = case(LAYOUTS["NCHW"], "weights")
    found = graph.evaluate(x, dy, gamma, beta, **options)
    size = np.abs(found.gradients["var"]) * np.sqrt(found.values["var"])
    assert np.all(np.abs(found.zero_path) < 1e-13 * size)
    (zero,) = (edge for edge in graph.EDGES if (edge.source, edge.target) == ("mu", "var"))
    v = one_channel()
    assert abs(zero.local(v).item()) < 1e-14
    assert abs(zero.local(v | {"mu": v["mu"] + 1}).item()) > 1  # it vanishes at the mean only


def test_padding_may_hold_any_values() -> None:
    x, dy, gamma, beta, options = case(LAYOUTS["(N, C, L)"])
    mask = np.ones((3, 1, 11))
    mask[1, :, 4:] = 0
    x[1, :, 4:], dy[1, :, 4:] = np.nan, 0
    found = graph.evaluate(x, dy, gamma, beta, **(options | {"mask": mask}))
    _, context = xhat.batch_norm(x, gamma, beta, **(options | {"mask": mask}))
    assert oracle.relative_l2(found.gradients["x"], xhat.batch_norm_backward(dy, context).dx) < TOLERANCE


def test_without_parameters_gamma_is_1_and_beta_is_0() -> None:
    x, dy, *_ = case(LAYOUTS["(N, C)"])
    found = graph.evaluate(x, dy)
    np.testing.assert_array_equal(found.values["y"], found.values["xhat"])
    np.testing.assert_array_equal(found.values["gamma"], np.ones(5))


def test_wrong_shapes_are_refused() -> None:
    x = np.ones((4, 3))
    with pytest.raises(
        ShapeError, match=r"^graph.evaluate: dy has shape \(4, 2\), expected \(4, 3\), the shape of x\.$"
    ):
        graph.evaluate(x, np.ones((4, 2)))
    with pytest.raises(
        ShapeError, match=r"^graph.evaluate: gamma has shape \(4,\), expected \(3,\) to match the channels"
    ):
        graph.evaluate(x, x, gamma=np.ones(4))
    with pytest.raises(
        ShapeError, match=r"^graph.evaluate: mask has shape \(7,\), expected one that broadcasts"
    ):
        graph.evaluate(x, x, mask=np.ones(7))
    with pytest.raises(ShapeError, match="axis 2 does not exist"):
        graph.evaluate(x, x, axis=2)
