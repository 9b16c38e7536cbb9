"""The graph of a model's forward, by torch.fx or torch.export, and what its nodes are for a fold.

The graph is only read: what runs are the model's own methods. Which layers are folded must never be decided here.
"""

import inspect
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from xhat.torch.convert.source import UntraceableError
from xhat.torch.errors import first_line
from xhat.torch.fold.norms import is_norm
from xhat.torch.internals import hooked

__all__ = ["Graph", "Inputs", "Parameters", "graph_of", "tensors_of"]

aten: Any = torch.ops.aten


class Inputs(NamedTuple):
    """The arguments of a call of the model."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Parameters(NamedTuple):
    """What a convolution or linear layer computes with: the paths of its weight and bias, None for what has none."""

    weight: str | None
    bias: str | None
    has_bias: bool


def _overloads(*names: str) -> set[Any]:
    return {
        getattr(getattr(aten, n), o) for n in names if hasattr(aten, n) for o in getattr(aten, n).overloads()
    }


_PRODUCTS = {
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "linear",
}
_PRODUCT = {getattr(F, name) for name in _PRODUCTS} | _overloads(*_PRODUCTS)
_NORM = {F.batch_norm, torch.batch_norm} | _overloads("batch_norm", "_native_batch_norm_legit_no_training")
_CAT = {torch.cat, torch.concat, torch.concatenate} | _overloads("cat", "concat", "concatenate")
_FLATTEN = {torch.flatten, "flatten"} | _overloads("flatten")
_SAME = {"contiguous", "detach", "clone", torch.clone, *_overloads("clone", "contiguous", "detach", "alias")}
_DROPOUT = {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout}
_DROPOUT |= _overloads("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout")
_SHAPES = {"size", "dim", "numel", *_overloads("sym_size", "sym_numel")}
_LIKE = {"reshape_as", "view_as", "expand_as", *_overloads("reshape_as", "view_as", "expand_as")}
_PAD = {F.pad} | _overloads("pad")
_DROPOUTS = (nn.modules.dropout._DropoutNd, nn.Identity)


class Graph:
    """A recorded forward, and the questions about its nodes. `how` is "torch.fx" or "torch.export"."""

    def __init__(self, model: nn.Module, graph: fx.Graph, paths: dict[fx.Node, str], how: str) -> None:
        self.model, self.graph, self.paths, self.how = model, graph, paths, how
        self.readers: dict[fx.Node, list[fx.Node]] = defaultdict(
            list
        )  # the nodes that read each node's value
        for node in graph.nodes:
            for n in _read_by(node):
                self.readers[n].append(node)
        self.uses = Counter[str]()  # how often each parameter or buffer is read, by its first path
        for node, path in paths.items():
            self.uses[path] += len(self.readers[node])

    def norm_calls(self) -> Iterator[tuple[str, fx.Node]]:
        """Path and node of every call of a batch norm, in their order."""
        for node in self.graph.nodes:
            path = self.norm_at(node)
            if path is not None:
                yield path, node

    def norm_at(self, node: fx.Node) -> str | None:
        """The path of the batch norm that this node calls, or of the module whose statistics it normalizes with."""
        if node.op == "call_module" and is_norm(self.model.get_submodule(str(node.target))):
            return str(node.target)
        if node.op == "call_function" and node.target in _NORM:
            given = (a for a in (*node.args[1:], *node.kwargs.values()) if isinstance(a, fx.Node))
            owners = {self.paths[a].rpartition(".")[0] for a in given if a in self.paths}
            return owners.pop() if len(owners) == 1 else None
        return None

    def product_at(self, node: fx.Node) -> Parameters | None:
        """The parameters of the convolution or linear map that this node computes, or None."""
        if node.op != "call_function" or node.target not in _PRODUCT:
            return None
        weight, bias = argument(node, 1, "weight"), argument(node, 2, "bias")
        return Parameters(self.paths.get(weight), self.paths.get(bias), bias is not None)

    def input_of(self, node: fx.Node) -> Any:
        """The node whose value is this node's first argument."""
        return argument(node, 0, "input")

    def parts_of_cat(self, node: fx.Node, ndim: int) -> list[fx.Node] | None:
        """The values that this node concatenates along the channels, if it does."""
        if node.op != "call_function" or node.target not in _CAT:
            return None
        dim = argument(node, 1, "dim", 0)
        parts = argument(node, 0, "tensors")
        along_channels = isinstance(dim, int) and dim % ndim == 1
        return list(parts) if along_channels and isinstance(parts, list | tuple) else None

    def is_same(self, node: fx.Node) -> bool:
        """Whether the values are the input's: of identity, dropout in evaluation, a copy, a padding that repeats."""
        if node.op == "call_module":
            module = self.model.get_submodule(str(node.target))
            torchs = isinstance(module, _DROPOUTS) and type(module).__module__.startswith("torch.nn.")
            return (
                torchs
                and not hooked(module)
                and not (module.training and not isinstance(module, nn.Identity))
            )
        if node.target in _SAME:
            return True
        if node.target in _DROPOUT:
            default = node.target not in (F.dropout, F.dropout1d, F.dropout2d, F.dropout3d)
            return argument(node, 2, "training", argument(node, 2, "train", not default)) is False
        return node.target in _PAD and argument(node, 2, "mode", "constant") in (
            "circular",
            "reflect",
            "replicate",
        )

    def is_flatten(self, node: fx.Node, dims: tuple[int, int] = (1, -1)) -> bool:
        """Whether the node makes one dimension of these: of (N, C, ...), or of (N, L, C) with (0, 1)."""
        if node.op == "call_module":
            module = self.model.get_submodule(str(node.target))
            ends = (getattr(module, "start_dim", None), getattr(module, "end_dim", None))
            return type(module) is nn.Flatten and ends == dims and not hooked(module)
        ends = (argument(node, 1, "start_dim", 0), argument(node, 2, "end_dim", -1))
        return node.target in _FLATTEN and ends == dims

    def pads_with_zeros(self, node: fx.Node) -> bool:
        """Whether the convolution at this node pads its input."""
        if node.target is F.linear or node.target in _overloads("linear"):
            return False
        padding = argument(node, 4, "padding", 0)
        return padding not in (0, "valid") and not (isinstance(padding, list | tuple) and not any(padding))

    def described(self, node: Any) -> str:
        """What a message calls this node's value."""
        if not isinstance(node, fx.Node) or node.op == "get_attr":
            return "a constant"
        return "the model's input" if node.op == "placeholder" else f"the output of {self.called(node)}"

    def called(self, node: fx.Node) -> str:
        """What a message calls the operation at this node."""
        if node.op == "output":
            return "the caller"
        product, norm = self.product_at(node), self.norm_at(node)
        if product is not None and product.weight is not None:
            return repr(product.weight.rpartition(".")[0])
        if norm is not None or node.op == "call_module":
            return repr(norm or str(node.target))
        name = (
            node.target
            if isinstance(node.target, str)
            else getattr(node.target, "__name__", str(node.target))
        )
        return str(name).split(".")[0]


def _read_by(node: fx.Node) -> list[fx.Node]:
    """The nodes whose values this node reads, each as often as it does; it may read no more than a shape."""
    found: list[fx.Node] = []
    read: Any = (node.args, node.kwargs)
    if node.target in _SHAPES or (
        node.target is getattr and node.args[1] in ("shape", "ndim", "dtype", "device")
    ):
        read = ()
    elif node.target in _LIKE:
        read = node.args[0]
    fx.map_arg(read, found.append)
    return found


def argument(node: fx.Node, place: int, name: str, default: Any = None) -> Any:
    """The argument of a call by its place or name."""
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def graph_of(model: nn.Module, inputs: Inputs | None) -> Graph:
    """The graph of the model's forward. Raises UntraceableError, with the reasons, if it can't be recorded.

    inputs: of a call; torch.export needs them. The model must be a copy: its own code runs.
    """
    try:
        return _by_fx(model, inputs or Inputs((), {}))
    except Exception as error:  # the model's own code runs, with proxies for its inputs
        why = f"torch.fx: {first_line(error)}"
    if inputs is None:
        raise UntraceableError(
            f"no graph of the model can be recorded ({why}); example_inputs let torch.export try"
        )
    try:
        return _by_export(model, inputs)
    except Exception as error:
        raise UntraceableError(
            f"no graph of the model can be recorded ({why}; torch.export: {first_line(error)})"
        ) from None


class _Tracer(fx.Tracer):
    """Records batch norms, what has hooks and torch's other modules as calls; of convolutions, the operation."""

    proxy_buffer_attributes = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether the call of this module is one node."""
        if is_norm(m) or hooked(m):
            return True
        if isinstance(m, nn.modules.conv._ConvNd | nn.Linear):
            return False
        return super().is_leaf_module(m, module_qualified_name)


def _by_fx(model: nn.Module, inputs: Inputs) -> Graph:
    graph = _Tracer().trace(model, concrete_args=_constants(model, inputs))
    return Graph(model, graph, {n: str(n.target) for n in graph.nodes if n.op == "get_attr"}, "torch.fx")


def _constants(model: nn.Module, inputs: Inputs) -> dict[str, Any]:
    """The arguments that are no tensors, and the defaults of those that are not given: the graph has their values."""
    signature = inspect.signature(model.forward)
    given = signature.bind_partial(*inputs.args, **inputs.kwargs).arguments
    found = {}
    for name, parameter in signature.parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        value = given.get(name, parameter.default)
        if value is None or isinstance(value, bool | int | float | str):
            found[name] = value
    return found


def _by_export(model: nn.Module, inputs: Inputs) -> Graph:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(model, inputs.args, inputs.kwargs, strict=False)
    names = {**program.graph_signature.inputs_to_parameters, **program.graph_signature.inputs_to_buffers}
    paths = {n: names[n.name] for n in program.graph.nodes if n.op == "placeholder" and n.name in names}
    return Graph(model, program.graph, paths, "torch.export")


def tensors_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The module's own parameters and buffers."""
    for name, value in (*module._parameters.items(), *module._buffers.items()):
        if value is not None:
            yield name, value
