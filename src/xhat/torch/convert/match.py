"""Finds bn -> activation and bn -> add -> activation in a graph of torch.fx, and writes the fused call instead.

Which graphs may be trusted, and what becomes of a rewritten one, must never be decided here.
"""

import math
import operator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from xhat.torch.internals import hooked
from xhat.torch.layers import BatchNorm

__all__ = ["Fusion", "add_then_activate", "fuse_calls", "kind_of", "named_kind", "passes", "ready"]


class Fusion(NamedTuple):
    """One fused call: the layer's path in the module, "relu" or "add, relu", and conditions for it."""

    layer: str
    what: str
    conditions: tuple[str, ...]


# -------------------------------------------------------------------------------------------- what modules are


def kind_of(module: nn.Module) -> Any:
    """The activation that this module computes, as a layer's `activation` says it; None if it is no such module.

    relu(v) = max(v, 0), leaky_relu(v) = max(v, 0) + slope min(v, 0), silu(v) = v / (1 + exp(-v)).
    """
    if hooked(module):
        return None
    if type(module) is nn.ReLU:
        return "relu"
    if type(module) is nn.SiLU:
        return "silu"
    return _leaky(module.negative_slope) if type(module) is nn.LeakyReLU else None


def passes(module: nn.Module) -> bool:
    """Whether this module hands on what it gets."""
    return type(module) is nn.Identity and not hooked(module)


def ready(module: nn.Module) -> bool:
    """Whether this is a layer of ours that can take an activation along: nobody looks at what it alone gives."""
    known = isinstance(module, BatchNorm) and type(module).forward is BatchNorm.forward
    return known and module.activation is None and not hooked(module)


def named_kind(activation: Any) -> str:
    """An activation in a word."""
    return activation if isinstance(activation, str) else str(activation[0])


def _leaky(slope: Any) -> Any:
    known = isinstance(slope, int | float) and math.isfinite(slope) and slope >= 0
    return ("leaky_relu", float(slope)) if known else None


# ----------------------------------------------------------------------------------------- what calls are

_RELU = {torch.relu, torch.relu_, F.relu, F.relu_, "relu", "relu_"}
_LEAKY = {F.leaky_relu, F.leaky_relu_}
_ADD = {operator.add, torch.add, "add"}
_ADD_IN_PLACE = {operator.iadd, "add_"}


def _activation(node: fx.Node, module: nn.Module) -> Any:
    """The activation that this node computes of its first argument, or None."""
    if node.op == "call_module":
        return kind_of(_child(node, module)) if len(node.args) == 1 and not node.kwargs else None
    if node.op not in ("call_function", "call_method"):
        return None
    options = {k: v for k, v in node.kwargs.items() if k != "inplace"}
    if node.target in _RELU and not options:
        return "relu"
    if node.target is F.silu and not options:
        return "silu"
    if node.target in _LEAKY and not set(options) - {"negative_slope"}:
        return _leaky(options.get("negative_slope", node.args[1] if len(node.args) > 1 else 0.01))
    return None


def _residual(node: fx.Node, term: fx.Node) -> fx.Node | None:
    """What this node adds to a term, and does nothing else; None if it does not."""
    if node.op not in ("call_function", "call_method") or len(node.args) != 2 or node.kwargs:
        return None
    first, second = node.args
    other = second if first is term else first
    known = node.target in _ADD or (node.target in _ADD_IN_PLACE and first is term)
    return other if known and isinstance(other, fx.Node) and other is not term else None


def add_then_activate(layer: BatchNorm, x: Tensor, residual: Any, activation: Any, in_place: bool) -> Tensor:
    """y = act(bn(x) + residual), in one call of the layer if the residual needs no broadcasting or promotion.

    in_place: whether the model wrote bn(x) += residual, which keeps the shape and dtype of bn(x) or raises.
    """
    alike = isinstance(residual, Tensor) and residual.shape == x.shape and residual.dtype == x.dtype
    if alike and residual.device == x.device:
        fused: Tensor = layer(x, residual=residual, activation=activation)
        return fused
    y: Tensor = layer(x)
    y = operator.iadd(y, residual) if in_place else y + residual
    if isinstance(activation, tuple):
        return F.leaky_relu(y, activation[1])
    return torch.relu(y) if activation == "relu" else F.silu(y)


# --------------------------------------------------------------------------------------------- rewriting


class _Match(NamedTuple):
    """bn, what lies between it and the end (Identity modules, the sum), the sum and what it adds, the activation."""

    bn: fx.Node
    between: list[fx.Node]
    total: fx.Node | None
    residual: fx.Node | None
    end: fx.Node
    kind: Any


def fuse_calls(graph: fx.Graph, module: nn.Module) -> tuple[list[Fusion], dict[str, str]]:
    """Rewrites this graph of a method of the module; returns what was fused, and path -> what stood in the way."""
    found: list[Fusion] = []
    missed: dict[str, str] = {}
    for node in list(graph.nodes):
        single = node.op == "call_module" and len(node.args) == 1 and not node.kwargs
        if single and isinstance(_child(node, module), BatchNorm) and isinstance(node.args[0], fx.Node):
            match = _match(node, module)
            if isinstance(match, _Match):
                found.append(_write(graph, match))
            elif match is not None:
                missed[str(node.target)] = match
    graph.lint()
    return found, missed


def _match(bn: fx.Node, module: nn.Module) -> _Match | str | None:
    """An activation that follows this call of a layer, alone or behind a sum; a reason if it can't be fused."""
    layer = _child(bn, module)
    if not ready(layer) and not (nn.parameter.is_lazy(layer.weight) and layer.activation is None):
        return "hooks look at what it gives" if hooked(layer) else None
    after, between = _follow(bn, module)
    total, residual = None, None
    if isinstance(after, fx.Node) and _activation(after, module) is None:
        total, residual = after, _residual(after, [bn, *between][-1])
        if residual is None:
            watched = after.op == "call_module" and hooked(_child(after, module))
            return "hooks look at what it gives to what follows" if watched else None
        after, passed = _follow(total, module)
        between += [total, *passed]
    kind = None if not isinstance(after, fx.Node) else _activation(after, module)
    if kind is None or not isinstance(after, fx.Node):
        return after if isinstance(after, str) else None
    if total is not None and not _can_wait(bn, total, module):
        return "its input or its statistics could change before the sum"
    return _Match(bn, between, total, residual, after, kind)


def _write(graph: fx.Graph, m: _Match) -> Fusion:
    """The fused call, in the place of what was matched."""
    conditions = [f"ready({_spelled(m.bn)})"]
    conditions += [f"passes({_spelled(n)})" for n in m.between if n is not m.total]
    if m.end.op == "call_module":
        conditions.append(f"kind_of({_spelled(m.end)}) == {m.kind!r}")
    gone = [m.end, *reversed(m.between)]
    if m.total is None:
        m.bn.kwargs = {"activation": m.kind}
        m.end.replace_all_uses_with(m.bn)
    else:
        with graph.inserting_before(m.total):
            layer = graph.get_attr(str(m.bn.target))
            given = (layer, m.bn.args[0], m.residual, m.kind, m.total.target in _ADD_IN_PLACE)
            m.end.replace_all_uses_with(graph.call_function(add_then_activate, given))
        gone.append(m.bn)
    for node in gone:
        graph.erase_node(node)
    words = named_kind(m.kind)
    return Fusion(str(m.bn.target), words if m.total is None else f"add, {words}", tuple(conditions))


def _follow(node: fx.Node, module: nn.Module) -> tuple[fx.Node | str | None, list[fx.Node]]:
    """The only node that uses this one's value, and Identity modules on the way there; a reason if it has others."""
    way = [node]
    while True:
        users = list(way[-1].users)
        if len(users) != 1:
            near = any(_activation(u, module) or _residual(u, way[-1]) for u in users)
            return ("what it gives is used more than once" if near else None), way[1:]
        if way[-1] not in users[0].args:
            return None, way[1:]
        if users[0].op != "call_module" or not passes(_child(users[0], module)):
            return users[0], way[1:]
        way.append(users[0])


def _can_wait(bn: fx.Node, total: fx.Node, module: nn.Module) -> bool:
    """Whether the layer can be called where the sum is: nothing between may change its input or its statistics.

    Nothing can if there is nothing between, or if the input is what a convolution or linear map made and only the
    layer has (no view of it can be anywhere), and nothing between calls the layer once more.
    """
    between = []
    node = bn.next
    while node is not total:
        if node.op != "call_module" or not passes(_child(node, module)):
            between.append(node)
        node = node.next
    if not between:
        return True
    (x,), layer = bn.all_input_nodes, _child(bn, module)
    source = _child(x, module) if x.op == "call_module" else None
    alone = isinstance(source, nn.modules.conv._ConvNd | nn.Linear) and len(x.users) == 1
    return alone and not any(layer in _child(n, module).modules() for n in between if n.op == "call_module")


def _child(node: fx.Node, module: nn.Module) -> Any:
    """The module that this node calls."""
    return module.get_submodule(str(node.target))


def _spelled(node: fx.Node) -> str:
    """The module that this node calls, in Python."""
    text = "self"
    for name in str(node.target).split("."):
        text = f"{text}.{name}" if name.isidentifier() else f"getattr({text}, {name!r})"
    return text
