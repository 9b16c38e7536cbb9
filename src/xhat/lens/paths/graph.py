"""The computational graph of batch normalization as data, evaluated forward and traversed backward.

::

    x -> mu -> var -> rstd -> xhat -> y -> loss        with gamma and beta entering at y

``NODES`` and ``EDGES`` are the graph, and ``evaluate`` runs it. No closed form of dx lives here: the reverse traversal,
node by node, computes dx independently of it. Forward values come from `xhat.equations`.
"""

from __future__ import annotations  # ArrayLike keeps its name in signatures

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from xhat import equations
from xhat.errors import ShapeError
from xhat.layout import channel_axes

__all__ = ["EDGES", "NODES", "Edge", "Evaluation", "Node", "by_channel", "evaluate"]

Array = NDArray[np.float64]
Values = Mapping[str, Any]


class Node(NamedTuple):
    """A quantity: its name, symbol and formula, and whether it has one element per channel."""

    name: str
    symbol: str
    formula: str
    per_channel: bool


class Edge(NamedTuple):
    """An edge: ``local`` is d target / d source as a function of the node values, ``formula`` the same as text."""

    source: str
    target: str
    formula: str
    local: Callable[[Values], Any]


# In topological order: every node comes after its inputs.
NODES = (
    Node("x", "x", "the input", False),
    Node("gamma", "γ", "the scale", True),
    Node("beta", "β", "the shift", True),
    Node("mu", "μ", "Σ w x / m", True),
    Node("var", "σ²", "Σ w (x − μ)² / (m − c)", True),
    Node("rstd", "r", "1 / √(σ² + ε)", True),
    Node("xhat", "x̂", "(x − μ) r", False),
    Node("y", "y", "γ x̂ + β", False),
    Node("loss", "L", "Σ dy · y, linear in y with the gradient dy", True),
)

EDGES = (
    Edge("x", "mu", "w / m", lambda v: v["w"] / v["m"]),
    Edge("x", "var", "2 w (x − μ) / (m − c)", lambda v: 2 * v["w"] * (v["x"] - v["mu"]) / (v["m"] - v["c"])),
    # The zero path: d var / d mu = 0, because the deviations sum to 0.
    Edge(
        "mu",
        "var",
        "−2 Σ w (x − μ) / (m − c) = 0",
        lambda v: -2 * _total(v["w"] * (v["x"] - v["mu"])) / (v["m"] - v["c"]),
    ),
    Edge("var", "rstd", "−r³ / 2", lambda v: -(v["rstd"] ** 3) / 2),
    Edge("x", "xhat", "r", lambda v: v["rstd"]),
    Edge("mu", "xhat", "−r", lambda v: -v["rstd"]),
    Edge("rstd", "xhat", "x − μ", lambda v: v["x"] - v["mu"]),
    Edge("xhat", "y", "γ", lambda v: v["gamma"]),
    Edge("gamma", "y", "x̂", lambda v: v["xhat"]),
    Edge("beta", "y", "1", lambda v: 1.0),
    Edge("y", "loss", "dy", lambda v: v["dy"]),
)


class Evaluation(NamedTuple):
    """One batch on the computational graph, in float64.

    Attributes
    ----------
    values, gradients : dict of str to ndarray
        An array for each node, of the shape of x or of the channels.
    flows : dict
        ``flows[source, target]`` is the gradient that the edge passes back to its source; the gradient of a node is
        the sum of the flows of its outgoing edges.
    """

    values: dict[str, Array]
    gradients: dict[str, Array]
    flows: dict[tuple[str, str], Array]

    @property
    def paths(self) -> equations.Paths:
        """The flows of the three edges from x: to xhat (direct), to mu and to var. They sum to dx."""
        return equations.Paths(*(self.flows["x", target] for target in ("xhat", "mu", "var")))

    @property
    def zero_path(self) -> Array:
        """The flow from var back to mu: 0 up to rounding, since the weighted deviations from mu sum to 0."""
        return self.flows["mu", "var"]


def by_channel(array: ArrayLike, axes: tuple[int, ...]) -> NDArray[Any]:
    """The array as (channels, elements of a channel); a copy unless the channel axes come first."""
    given = np.asarray(array)
    moved = np.moveaxis(given, axes, range(len(axes)))
    channels = int(np.prod([given.shape[a] for a in axes], dtype=int))
    return moved.reshape(channels, given.size // channels if channels else 0)


def evaluate(
    x: ArrayLike,
    dy: ArrayLike,
    gamma: ArrayLike | None = None,
    beta: ArrayLike | None = None,
    *,
    axis: int | tuple[int, ...] = 1,
    eps: float = 1e-5,
    correction: float = 0,
    mask: ArrayLike | None = None,
) -> Evaluation:
    """Evaluate the computational graph of batch normalization, then traverse it in reverse order.

    ::

        gradient(node) = sum over its outgoing edges of gradient(target) * d target / d node

    Everything is computed in float64.

    Parameters
    ----------
    x : array_like
        The batch, of any shape.
    dy : array_like
        The gradient with respect to y, in the shape of x.
    gamma, beta : array_like, optional
        Scale and shift, in the shape of the channel axes. They default to 1 and 0.
    axis : int or tuple of int, default 1
        The channel axis, or several axes that are the channels together.
    eps : float, default 1e-5
        Added to the variance inside the square root.
    correction : float, default 0
        What the variance divides by is m - correction.
    mask : array_like, optional
        Bool or weights that broadcast to x. Padding (weight 0) may hold any values, NaN included.

    Returns
    -------
    Evaluation
        ``values`` and ``gradients``, an array for each node; ``flows``, an array for each edge; ``paths``, the flows
        of the three edges from x.

    Raises
    ------
    ShapeError
        If shapes do not match.

    See Also
    --------
    graph : Its nodes and edges.
    xhat.gradient_paths : The three paths, by closed forms.

    Examples
    --------
    >>> import numpy as np
    >>> import xhat
    >>> import xhat.lens
    >>> x, dy = np.array([[1.0], [2.0], [6.0]]), np.array([[1.0], [0.0], [0.0]])
    >>> found = xhat.lens.evaluate(x, dy)
    >>> found.gradients["x"].round(4).ravel().tolist()
    [0.1763, -0.2204, 0.0441]
    >>> y, context = xhat.batch_norm(x)
    >>> np.allclose(found.gradients["x"], xhat.batch_norm_backward(dy, context).dx)
    True
    """
    x, dy = np.asarray(x), np.asarray(dy)
    axes = channel_axes(x.ndim, axis, "graph.evaluate")
    if dy.shape != x.shape:
        raise ShapeError(f"graph.evaluate: dy has shape {dy.shape}, expected {x.shape}, the shape of x.")
    channels = tuple(x.shape[a] for a in axes)
    w = np.ones((1, 1)) if mask is None else _weights(mask, x.shape, axes)
    values: dict[str, Any] = {
        "x": by_channel(x, axes).astype(np.float64),
        "dy": by_channel(dy, axes).astype(np.float64),
        "gamma": _parameter(gamma, 1.0, channels, "gamma"),
        "beta": _parameter(beta, 0.0, channels, "beta"),
        "w": w,
        "c": correction,
    }
    values["x"] = np.where((w == 0) & ~np.isfinite(values["x"]), 0, values["x"])  # padding
    values["m"] = _total(w) if mask is not None else float(values["x"].shape[1])
    _forward(values, eps)
    gradients, flows = _backward(values)

    def shaped(name: str, array: Array) -> Array:
        return _shape_back(array, _NODE[name].per_channel, x.shape, axes)

    return Evaluation(
        {node.name: shaped(node.name, values[node.name]) for node in NODES},
        {name: shaped(name, gradient) for name, gradient in gradients.items()},
        {edge: shaped(edge[0], flow) for edge, flow in flows.items()},
    )


_NODE = {node.name: node for node in NODES}


def _total(value: Any) -> Any:
    return np.sum(value, axis=1, keepdims=True)


def _forward(v: dict[str, Any], eps: float) -> None:
    v["mu"], m2 = equations.moments(v["x"], _total, v["m"], v["w"])
    v["var"] = equations.variance(m2, v["m"], v["c"])
    v["rstd"] = equations.reciprocal_std(v["var"], eps, np.sqrt)
    v["xhat"] = equations.standardize(v["x"], v["mu"], v["rstd"])
    v["y"] = v["gamma"] * v["xhat"] + v["beta"]
    v["loss"] = _total(v["dy"] * v["y"])


def _backward(v: dict[str, Any]) -> tuple[dict[str, Array], dict[tuple[str, str], Array]]:
    gradients = {node.name: np.zeros_like(v[node.name]) for node in NODES}
    gradients["loss"] = np.ones_like(v["loss"])
    flows = {}
    for node in reversed(NODES):
        for edge in (edge for edge in EDGES if edge.target == node.name):
            flow = gradients[node.name] * edge.local(v)
            if _NODE[edge.source].per_channel and flow.shape[1] > 1:
                flow = _total(flow)  # a broadcast: sum over the elements of the channel
            flow = np.broadcast_to(flow, gradients[edge.source].shape)
            flows[edge.source, edge.target] = flow
            gradients[edge.source] = gradients[edge.source] + flow
    return gradients, flows


def _parameter(given: ArrayLike | None, default: float, channels: tuple[int, ...], name: str) -> Array:
    value = np.full(channels, default) if given is None else np.asarray(given, dtype=np.float64)
    if value.shape != channels:
        raise ShapeError(
            f"graph.evaluate: {name} has shape {value.shape}, expected {channels} to match the channels of x."
        )
    return value.reshape(-1, 1)


def _weights(mask: ArrayLike, shape: tuple[int, ...], axes: tuple[int, ...]) -> Array:
    try:
        full = np.broadcast_to(np.asarray(mask, dtype=np.float64), shape)
    except ValueError:
        raise ShapeError(
            f"graph.evaluate: mask has shape {np.shape(mask)}, expected one that broadcasts to {shape}."
        ) from None
    return by_channel(full, axes)


def _shape_back(array: Array, per_channel: bool, shape: tuple[int, ...], axes: tuple[int, ...]) -> Array:
    channels = [shape[a] for a in axes]
    if per_channel:
        return np.asarray(array).reshape(channels)
    others = [size for a, size in enumerate(shape) if a not in axes]
    return np.moveaxis(np.asarray(array).reshape(channels + others), range(len(axes)), axes)
