"""The batch norms of an exported graph: calls of torch's operators, with constants for mode, eps and momentum."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from typing import Any, NamedTuple

from torch import Tensor, fx, nn

__all__ = ["GraphNorm", "constants_changed", "is_initial", "norms_of"]

# Operator -> places of training, momentum and eps among its arguments; None: the operator is for one mode.
_OPERATORS: dict[str, tuple[int | None, int, int]] = {
    "batch_norm": (5, 6, 7),
    "native_batch_norm": (5, 6, 7),
    "_native_batch_norm_legit": (5, 6, 7),
    "_native_batch_norm_legit_functional": (5, 6, 7),
    "_native_batch_norm_legit_no_training": (None, 5, 6),
    "_batch_norm_with_update": (None, 5, 6),
    "_batch_norm_no_update": (None, 5, 6),
}


class GraphNorm(NamedTuple):
    """One node: the path of the layer that it was, and its constants."""

    path: str
    node: fx.Node
    training: bool
    eps: float
    places: tuple[int | None, int, int]


def norms_of(model: nn.Module) -> list[GraphNorm]:
    """The batch norms of the graph; empty if the model is no graph of operators."""
    graph = getattr(model, "graph", None)
    if not isinstance(graph, fx.Graph):
        return []
    found = []
    for node in graph.nodes:
        name = str(node.target).split(".")[1] if str(node.target).startswith("aten.") else ""
        if node.op == "call_function" and name in _OPERATORS:
            at, _, eps = places = _OPERATORS[name]
            training = name == "_batch_norm_with_update" if at is None else bool(node.args[at])
            found.append(GraphNorm(_path(node), node, training, float(node.args[eps]), places))
    return found


def _path(node: fx.Node) -> str:
    stack: dict[str, Any] = node.meta.get("nn_module_stack") or {}
    paths = [value[0] for value in stack.values()]
    return str(paths[-1]) if paths and paths[-1] else node.name


def is_initial(model: nn.Module, norm: GraphNorm) -> bool:
    """Whether the running statistics that the node reads are still 0 and 1."""
    read = [node for node in norm.node.args[3:5] if isinstance(node, fx.Node) and node.op == "get_attr"]
    found: list[Any] = [reduce(getattr, str(node.target).split("."), model) for node in read]
    values = [value for value in found if isinstance(value, Tensor)]
    return len(values) == 2 and bool((values[0] == 0).all() and (values[1] == 1).all())


@contextmanager
def constants_changed(model: Any, norms: list[GraphNorm], which: int, value: Any) -> Iterator[None]:
    """Surrounds passes of the graph in which a constant (0: training, 2: eps) of these nodes has another value."""
    before = [(x.node, x.node.args) for x in norms if x.places[which] is not None]
    try:
        for x in norms:
            if (place := x.places[which]) is not None:
                x.node.update_arg(place, value)
        model.recompile()
        yield
    finally:
        for node, args in before:
            node.args = args
        model.recompile()
