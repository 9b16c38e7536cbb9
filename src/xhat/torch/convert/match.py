"""Matches bn -> activation and bn -> add -> activation in a torch.fx graph, and replaces each by one fused call.

Whether a graph may be trusted, and what is compiled from the rewritten graph, must never be decided here.
"""

import math
import operator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from xhat.torch.internals import hooked
from xhat.torch.nn import BatchNorm

__all__ = [
    "Fusion",
    "activation_name",
    "activation_of",
    "add_then_activate",
    "fuse_calls",
    "is_fusable",
    "is_identity",
]


class Fusion(NamedTuple):
    """One fused call: the layer's path in the module, "relu" or "add, relu", and the guards of the rewrite."""

    layer: str
    what: str
    guards: tuple[str, ...]


# ----------------------------------------------------- what a module computes; guards call these functions as well


def activation_of(module: nn.Module) -> Any:
    """The activation that this module computes, as a value of a layer's `activation` option; None if it is another.

    relu(v) = max(v, 0), leaky_relu(v) = max(v, 0) + slope min(v, 0), silu(v) = v / (1 + exp(-v)).
    """
    if hooked(module) or _TORCH_FORWARDS.get(type(module)) is not type(module).forward:
        return None
    if type(module) is nn.ReLU:
        return "relu"
    if type(module) is nn.SiLU:
        return "silu"
    return _leaky_relu(module.negative_slope) if type(module) is nn.LeakyReLU else None


_TORCH_FORWARDS: dict[type, Any] = {
    kind: kind.forward for kind in (nn.ReLU, nn.SiLU, nn.LeakyReLU, nn.Identity)
}


def is_identity(module: nn.Module) -> bool:
    """Whether this module returns its input, and no hook reads it."""
    torchs = type(module) is nn.Identity and nn.Identity.forward is _TORCH_FORWARDS[nn.Identity]
    return torchs and not hooked(module)


def is_fusable(module: nn.Module) -> bool:
    """Whether this is a layer of xhat's that can apply an activation: it has none, and no hook reads its output."""
    xhats = isinstance(module, BatchNorm) and type(module).forward is BatchNorm.forward
    return xhats and module.activation is None and not hooked(module)


def activation_name(activation: Any) -> str:
    """The activation's name, without its slope."""
    return activation if isinstance(activation, str) else str(activation[0])


def _leaky_relu(slope: Any) -> Any:
    valid = isinstance(slope, int | float) and math.isfinite(slope) and slope >= 0
    return ("leaky_relu", float(slope)) if valid else None


# ------------------------------------------------------------------------------------------- what a node computes

_RELU = {torch.relu, torch.relu_, F.relu, F.relu_, "relu", "relu_"}
_LEAKY_RELU = {F.leaky_relu, F.leaky_relu_}
_ADD = {operator.add, torch.add, "add"}
_ADD_IN_PLACE = {operator.iadd, "add_"}


def _activation_at(node: fx.Node, module: nn.Module) -> Any:
    """The activation that this node applies to its first argument, or None."""
    if node.op == "call_module":
        return activation_of(_called(node, module)) if len(node.args) == 1 and not node.kwargs else None
    if node.op not in ("call_function", "call_method"):
        return None
    options = {k: v for k, v in node.kwargs.items() if k != "inplace"}
    if node.target in _RELU and not options:
        return "relu"
    if node.target is F.silu and not options:
        return "silu"
    if node.target in _LEAKY_RELU and not set(options) - {"negative_slope"}:
        return _leaky_relu(options.get("negative_slope", node.args[1] if len(node.args) > 1 else 0.01))
    return None


def _other_term(node: fx.Node, term: fx.Node) -> fx.Node | None:
    """The node that `node` adds to `term`; None if `node` is anything but the sum of two nodes."""
    if node.op not in ("call_function", "call_method") or len(node.args) != 2 or node.kwargs:
        return None
    first, second = node.args
    other = second if first is term else first
    is_sum = node.target in _ADD or (node.target in _ADD_IN_PLACE and first is term)
    return other if is_sum and isinstance(other, fx.Node) and other is not term else None


def add_then_activate(layer: BatchNorm, x: Tensor, residual: Any, activation: Any, in_place: bool) -> Tensor:
    """y = act(bn(x) + residual): one call of the layer if the sum needs no broadcasting or type promotion.

    in_place: the model has `y += residual`, which keeps the shape and dtype of bn(x), or raises.
    """
    matches = isinstance(residual, Tensor) and residual.shape == x.shape and residual.dtype == x.dtype
    if matches and residual.device == x.device:
        fused: Tensor = layer(x, residual=residual, activation=activation)
        return fused
    y: Tensor = layer(x)
    y = operator.iadd(y, residual) if in_place else y + residual
    if isinstance(activation, tuple):
        return F.leaky_relu(y, activation[1])
    return {"relu": torch.relu, "silu": F.silu}[activation](y)


# ------------------------------------------------------------------------------------------ matching and rewriting


class _Match(NamedTuple):
    """The nodes bn -> [add residual] -> last, and the nodes between bn and last: Identity modules, and `add`."""

    bn: fx.Node
    between: list[fx.Node]
    add: fx.Node | None
    residual: fx.Node | None
    last: fx.Node
    activation: Any


def fuse_calls(graph: fx.Graph, module: nn.Module) -> tuple[list[Fusion], dict[str, str]]:
    """Rewrites the graph of a method of `module`. Returns the fusions, and path -> reason for each missed one."""
    found: list[Fusion] = []
    missed: dict[str, str] = {}
    for node in list(graph.nodes):
        single = node.op == "call_module" and len(node.args) == 1 and not node.kwargs
        if single and isinstance(_called(node, module), BatchNorm) and isinstance(node.args[0], fx.Node):
            match = _match(node, module)
            if isinstance(match, _Match):
                found.append(_rewrite(graph, match))
            elif match is not None:
                missed[str(node.target)] = match
    graph.lint()
    return found, missed


def _match(bn: fx.Node, module: nn.Module) -> _Match | str | None:
    """The match that begins with this call of a layer; the reason if it can't be fused; None if there is none."""
    layer = _called(bn, module)
    if not is_fusable(layer) and not (nn.parameter.is_lazy(layer.weight) and layer.activation is None):
        return "hooks look at what it gives" if hooked(layer) else None
    user, between = _only_user(bn, module)
    add, residual = None, None
    if isinstance(user, fx.Node) and _activation_at(user, module) is None:
        add, residual = user, _other_term(user, [bn, *between][-1])
        if residual is None:
            with_hooks = user.op == "call_module" and hooked(_called(user, module))
            return "hooks look at what it gives to what follows" if with_hooks else None
        user, skipped = _only_user(add, module)
        between += [add, *skipped]
    activation = _activation_at(user, module) if isinstance(user, fx.Node) else None
    if activation is None or not isinstance(user, fx.Node):
        return user if isinstance(user, str) else None
    if add is not None and not _can_be_delayed(bn, add, module):
        return "its input or its statistics could change before the sum"
    return _Match(bn, between, add, residual, user, activation)


def _rewrite(graph: fx.Graph, m: _Match) -> Fusion:
    """Replaces the matched nodes by one call."""
    guards = [f"is_fusable({_source_of(m.bn)})"]
    guards += [f"is_identity({_source_of(node)})" for node in m.between if node is not m.add]
    if m.last.op == "call_module":
        guards.append(f"activation_of({_source_of(m.last)}) == {m.activation!r}")
    replaced = [m.last, *reversed(m.between)]
    if m.add is None:
        m.bn.kwargs = {"activation": m.activation}
        m.last.replace_all_uses_with(m.bn)
    else:
        with graph.inserting_before(m.add):
            layer = graph.get_attr(str(m.bn.target))
            args = (layer, m.bn.args[0], m.residual, m.activation, m.add.target in _ADD_IN_PLACE)
            m.last.replace_all_uses_with(graph.call_function(add_then_activate, args))
        replaced.append(m.bn)
    for node in replaced:
        graph.erase_node(node)
    name = activation_name(m.activation)
    return Fusion(str(m.bn.target), name if m.add is None else f"add, {name}", tuple(guards))


def _only_user(node: fx.Node, module: nn.Module) -> tuple[fx.Node | str | None, list[fx.Node]]:
    """The only node that uses this value, and the Identity modules before it.

    In place of the node: the reason if an activation or a sum is among several users, None if there is no match.
    """
    path = [node]
    while True:
        users = list(path[-1].users)
        if len(users) != 1:
            missed = any(_activation_at(u, module) or _other_term(u, path[-1]) for u in users)
            return ("what it gives is used more than once" if missed else None), path[1:]
        if path[-1] not in users[0].args:
            return None, path[1:]
        if users[0].op != "call_module" or not is_identity(_called(users[0], module)):
            return users[0], path[1:]
        path.append(users[0])


def _can_be_delayed(bn: fx.Node, add: fx.Node, module: nn.Module) -> bool:
    """Whether the layer can run where the sum is: no node in between may change its input or its statistics.

    This holds if there is no node in between. It also holds if the input is the output of a convolution or linear
    layer that only `bn` uses, so that no view of it exists elsewhere, and no node in between calls the layer again.
    """
    between = []
    node = bn.next
    while node is not add:
        if node.op != "call_module" or not is_identity(_called(node, module)):
            between.append(node)
        node = node.next
    if not between:
        return True
    (x,), layer = bn.all_input_nodes, _called(bn, module)
    producer = _called(x, module) if x.op == "call_module" else None
    unshared = isinstance(producer, nn.modules.conv._ConvNd | nn.Linear) and len(x.users) == 1
    return unshared and not any(
        layer in _called(n, module).modules() for n in between if n.op == "call_module"
    )


def _called(node: fx.Node, module: nn.Module) -> Any:
    """The module that a call_module node calls."""
    return module.get_submodule(str(node.target))


def _source_of(node: fx.Node) -> str:
    """A Python expression of `self` for the module that a call_module node calls."""
    text = "self"
    for name in str(node.target).split("."):
        text = f"{text}.{name}" if name.isidentifier() else f"getattr({text}, {name!r})"
    return text
