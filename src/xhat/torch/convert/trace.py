"""Graphs of single methods, traced by torch.fx, with the conditions under which they hold. What is done with them
must never live here.
"""

import inspect
import operator
from types import FunctionType
from typing import Any, NamedTuple

from torch import Tensor, fx, nn

from xhat.torch.convert.guards import UnfaithfulError, conditions
from xhat.torch.convert.recorded import Recorded
from xhat.torch.errors import first_line

__all__ = ["Trace", "called_methods", "is_chain", "mentioned", "trace"]


class Trace(NamedTuple):
    """The graph of a method, children as single calls by their first paths, and Python expressions of `self`.

    While all of them are true, the method does what the graph does.
    """

    graph: fx.Graph
    conditions: tuple[str, ...]


def trace(module: nn.Module, method: str) -> Trace:
    """The graph of this method. Raises UnfaithfulError with the reason where there is none that can be relied on."""
    known = _in_order(module) if is_chain(module, method) else conditions(module, method)
    tracer = _Tracer()
    tracer.traced_func_name = method
    try:
        graph = tracer.trace(module)
    except Exception as error:  # whatever the method does with a stand-in
        raise UnfaithfulError(f"torch.fx can't trace its {method} ({first_line(error)})") from None
    if tracer.baked:
        raise UnfaithfulError(f"its {method} computes with tensors that are no parameters, buffers or inputs")
    return Trace(graph, known)


def _in_order(module: nn.Module) -> tuple[str, ...]:
    """`conditions` of Sequential's method: the same names in the same order, each of the child that is recorded."""
    recorded = Recorded(module)
    found = [f"tuple(self._modules) == {tuple(module._modules)!r}"]
    for name, child in module._modules.items():
        found += recorded.conditions(f"getattr(self, {name!r}, None)", child) if child in recorded else ()
    return tuple(found)


def is_chain(module: nn.Module, method: str = "forward") -> bool:
    """Whether this method is Sequential's: its children, one after the other."""
    return getattr(type(module), method) is nn.Sequential.forward


def mentioned(module: nn.Module, method: str) -> set[str]:
    """Names of the attributes that this method mentions, of self or of others; of all children if it does not say."""
    code = getattr(inspect.unwrap(getattr(type(module), method)), "__code__", None)
    return set(module._modules) if code is None or is_chain(module, method) else set(code.co_names)


def called_methods(module: nn.Module, method: str) -> set[str]:
    """Names of the module's own methods that this one mentions: it can leave its work to them."""
    found = {n: inspect.getattr_static(type(module), n, None) for n in mentioned(module, method)}
    return {name for name, value in found.items() if isinstance(value, FunctionType)}


class _Proxy(fx.Proxy):
    """Records x += y as what it is; torch.fx makes x = x + y of it, which others who hold x would not see."""

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})


class _Tracer(fx.Tracer):
    """Children are single calls, and tensors of the module are read by name."""

    proxy_buffer_attributes = True

    def __init__(self) -> None:
        super().__init__()
        self.baked = False

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Always: what a child does is its own affair."""
        return True

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """A stand-in for the value of a node."""
        return _Proxy(node, self)

    def create_arg(self, a: Any) -> Any:
        """As torch.fx's, and notes tensors that would become constants."""
        if isinstance(a, Tensor) and not any(a is t for t in (*self.root.parameters(), *self.root.buffers())):
            self.baked = True
        return super().create_arg(a)
