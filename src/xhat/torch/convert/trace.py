"""torch.fx graphs of single methods, with the guards under which they are valid.

How a graph is rewritten or called must never be decided here.
"""

import inspect
import operator
from types import FunctionType
from typing import Any, NamedTuple

from torch import Tensor, fx, nn

from xhat.torch.convert.guards import RecordedPaths, guards_of
from xhat.torch.convert.source import UntraceableError
from xhat.torch.errors import first_line

__all__ = ["Trace", "attribute_names", "called_methods", "trace"]


class Trace(NamedTuple):
    """The graph of a method, in which each call of a child is one node, and its guards.

    While all guards, which are Python expressions of `self`, are true, the method computes what the graph does.
    """

    graph: fx.Graph
    guards: tuple[str, ...]


def trace(module: nn.Module, method: str) -> Trace:
    """Traces this method. Raises UntraceableError, with the reason, if no valid graph can be had."""
    is_sequential = _is_sequential(module, method)
    guards = _sequential_guards(module) if is_sequential else guards_of(module, method)
    tracer = _Tracer()
    tracer.traced_func_name = method
    try:
        graph = tracer.trace(module)
    except Exception as error:  # the method's own code runs, with proxies for its inputs
        raise UntraceableError(f"torch.fx can't trace its {method} ({first_line(error)})") from None
    if tracer.has_constant_tensors:
        raise UntraceableError(
            f"its {method} computes with tensors that are no parameters, buffers or inputs"
        )
    return Trace(graph, guards)


def _is_sequential(module: nn.Module, method: str) -> bool:
    """Whether this method is nn.Sequential's forward, which calls one child after the other."""
    return getattr(type(module), method) is nn.Sequential.forward


def _sequential_guards(module: nn.Module) -> tuple[str, ...]:
    """The guards of nn.Sequential's forward: the names of the children in their order, and what they refer to."""
    recorded = RecordedPaths(module)
    found = [f"tuple(self._modules) == {tuple(module._modules)!r}"]
    for name, child in module._modules.items():
        found += recorded.guards(f"getattr(self, {name!r}, None)", child) if child in recorded else ()
    return tuple(found)


def attribute_names(module: nn.Module, method: str) -> set[str]:
    """Names of the attributes that this method accesses, on any object; of all children if its code is unknown."""
    code = getattr(inspect.unwrap(getattr(type(module), method)), "__code__", None)
    return set(module._modules) if code is None or _is_sequential(module, method) else set(code.co_names)


def called_methods(module: nn.Module, method: str) -> set[str]:
    """Names of the methods of the module itself that this method may call."""
    found = {n: inspect.getattr_static(type(module), n, None) for n in attribute_names(module, method)}
    return {name for name, value in found.items() if isinstance(value, FunctionType)}


class _Proxy(fx.Proxy):
    """Records x += y as an operation in place. torch.fx records x = x + y, which other references to x do not see."""

    def __iadd__(self, other: Any) -> fx.Proxy:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})


class _Tracer(fx.Tracer):
    """Records each call of a child as one node, and parameters and buffers by their paths."""

    proxy_buffer_attributes = True

    def __init__(self) -> None:
        super().__init__()
        self.has_constant_tensors = False

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """True: what happens inside of a child is not traced."""
        return True

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """The proxy for the value of a node."""
        return _Proxy(node, self)

    def create_arg(self, a: Any) -> Any:
        """As torch.fx's; also notes tensors that would become constants of the graph."""
        if isinstance(a, Tensor) and not any(a is t for t in (*self.root.parameters(), *self.root.buffers())):
            self.has_constant_tensors = True
        return super().create_arg(a)
