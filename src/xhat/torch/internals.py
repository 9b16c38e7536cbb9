"""Which transform, tracer or pass is running: the only file that uses torch's private names."""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, fx, nn
from torch.autograd import forward_ad
from torch.utils import _pytree

__all__ = [
    "FUSIONS_OF_QUANTIZATION",
    "SameKind",
    "batched",
    "constant",
    "copied_by_jit",
    "device_of",
    "differentiating_forward",
    "eager",
    "exporting",
    "for_other_tools",
    "functionalizing",
    "hooked",
    "on_a_device",
    "ordinary",
    "plain",
    "read_by_mkldnn",
    "recomputing",
    "registered",
    "symbolically_traced",
    "tangents",
    "timeout_of",
    "tool_by_exact_class",
    "tracing",
    "transforming",
    "uncompiled",
    "unrecorded",
    "untransformed",
]

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

_TensorGuards: Any = torch._C._dynamo.guards.TensorGuards
_modes = torch._C._len_torch_dispatch_stack
_task = torch._C._current_graph_task_id
_tracing_state = torch._C._get_tracing_state
_set_tracing_state = torch._C._set_tracing_state  # type: ignore[attr-defined]
_is_compiling = torch.compiler.is_compiling
_any_global_hook = torch.nn.modules.module._has_any_global_hook

untransformed = torch._C._DisableFuncTorch  # tensors made in its block are no wrappers of torch.func's

_PLAIN = (Tensor, torch.nn.Parameter)


# Whether a transform of torch.func (grad, vjp, jvp, vmap, ...) is active: every operation must be one of torch's own.
transforming = torch._C._are_functorch_transforms_active


def eager() -> bool:
    """Whether no graph is recorded, no torch.func transform is active, and no forward-mode level is open."""
    return not (
        _is_compiling()
        or _modes() > 0
        or _tracing_state() is not None
        or transforming()
        or forward_ad._current_level >= 0
    )


def differentiating_forward() -> bool:
    """Whether a forward-mode level is open: tensors may carry tangents, which a kernel would silently drop."""
    return forward_ad._current_level >= 0


def unrecorded(function: Callable[..., T], *arguments: Any) -> T:
    """The function's value, hidden from torch.jit.trace, which records sizes as tensors and warns of comparisons."""
    state = None if _is_compiling() else _tracing_state()
    if state is None:
        return function(*arguments)
    _set_tracing_state(None)
    try:
        return function(*arguments)
    finally:
        _set_tracing_state(state)


def constant(function: F) -> F:
    """Marks a function whose value torch.compile takes for a constant, as torch.compiler.assume_constant_result does.

    That one imports the whole compiler, which takes longer than importing torch.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def uncompiled() -> AbstractContextManager[Any]:
    """Surrounds calls of a model whose compiled parts are to run as they were written."""
    loaded = "torch._dynamo" in sys.modules  # else nothing was compiled, and the import would take seconds
    return torch.compiler.set_stance("force_eager") if loaded else nullcontext()


def tangents(*tensors: Tensor | None) -> bool:
    """Whether one of these carries a tangent of the forward mode."""
    return differentiating_forward() and any(
        t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors
    )


def functionalizing() -> bool:
    """Whether torch.func.functionalize is active, which has no rule for an autograd.Function."""
    stack = torch._C._functorch.get_interpreter_stack() or ()
    return any(i.key() == torch._C._functorch.TransformType.Functionalize for i in stack)


def tracing() -> bool:
    """Whether a graph is being recorded (compile, export, make_fx, fake tensors), which needs an operator to record."""
    return _is_compiling() or _modes() > 0 or _tracing_state() is not None


def copied_by_jit() -> bool:
    """Whether torch.jit.trace is running, which copies the attributes of each module."""
    return torch.jit._trace._trace_module_map is not None


# Whether torch.export records a graph, which other tools will read. Not torch.compiler.is_exporting: before 2.13,
# torch.compile takes it for true in all of its own graphs. Each call of a layer reads it: no Python frame.
exporting: Callable[[], bool] = partial(getattr, torch.compiler, "_is_exporting_flag")


def for_other_tools() -> bool:
    """Whether a graph is recorded that other tools will read: by torch.export, torch.jit.trace, or for ONNX."""
    return exporting() or torch.onnx.is_in_onnx_export() or _tracing_state() is not None


def symbolically_traced(*arguments: Any) -> bool:
    """Whether torch.fx.symbolic_trace or a tracer of that kind is running, with proxies among these arguments."""
    if _is_compiling() or not fx._symbolic_trace.is_fx_symbolic_tracing():
        return False
    return any(isinstance(leaf, fx.Proxy) for leaf in _pytree.tree_leaves(arguments))


_TOOLS_BY_EXACT_CLASS = ("torch.ao.quantization", "torch.fx.experimental.optimization")


def tool_by_exact_class() -> str | None:
    """The tool on the stack that recognizes layers by torch's exact class, if there is one."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        module = str(frame.f_globals.get("__name__"))
        found = next((tool for tool in _TOOLS_BY_EXACT_CLASS if module.startswith(tool)), None)
        if found:
            return found
        frame = frame.f_back
    return None


def read_by_mkldnn() -> bool:
    """Whether torch.utils.mkldnn reads the property whose getter calls the caller: it compiles what it reads."""
    return sys._getframe(3).f_globals.get("__name__") == "torch.utils.mkldnn"


# What torch.ao.quantization.fuse_modules fuses: classes of modules -> a function. Importing torch imports it.
FUSIONS_OF_QUANTIZATION: dict[Any, Any] = (
    torch.ao.quantization.fuser_method_mappings._DEFAULT_OP_LIST_TO_FUSER_METHOD
)


def recomputing() -> bool:
    """Whether autograd's backward pass is running: a forward inside it repeats one that has updated the statistics."""
    return not _is_compiling() and _task() != -1


# Whether a gradient is a batch of gradients (is_grads_batched): a tensor without an address, made by a vmap that
# torch.func does not know of.
batched = torch._C._functorch.is_legacy_batchedtensor


def ordinary(t: Tensor) -> bool:
    """Whether this is a tensor without a subclass, with its elements at data_ptr, on any device."""
    return type(t) in _PLAIN and t.layout is torch.strided and not t.is_neg()


def on_a_device(value: Any) -> bool:
    """Whether this is a tensor that the host would have to wait for."""
    return isinstance(value, Tensor) and value.device.type not in ("cpu", "meta")


def plain(*tensors: Tensor | None) -> bool:
    """Whether these are ordinary CPU tensors, with their elements at data_ptr (which is 0 for a tensor without any)."""
    for t in tensors:
        if t is not None and not (
            type(t) in _PLAIN and t.is_cpu and t.layout is torch.strided and not t.is_neg()
        ):
            return False
    return True


class SameKind:
    """Values that depend on the kinds of some tensors, found again in one call of torch.compile's guard.

    The kind of a tensor is its class, dtype, device, dispatch keys (with those of active transforms and modes), shape,
    strides and requires_grad. The guard compares them in C++, in less time than Python takes to read two of them. A
    value is stored under one of its tensors, by `id`: if another tensor has taken that place, the guard still compares.
    """

    def __init__(self, limit: int = 4096) -> None:
        self._found: dict[int, tuple[Callable[..., bool], Any]] = {}
        self._limit = limit

    def get(self, key: Tensor, *tensors: Tensor) -> Any:
        """The value that was put under key for tensors of these kinds; None if there is none."""
        found = self._found.get(id(key))
        return found[1] if found is not None and found[0](*tensors) else None

    def put(self, value: Any, key: Tensor, *tensors: Tensor) -> None:
        """Stores a value, in place of the one that was stored under key."""
        if len(self._found) >= self._limit:
            self._found.clear()
        sizes, strides = [list(t.shape) for t in tensors], [list(t.stride()) for t in tensors]
        made = _TensorGuards(*tensors, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides)
        self._found[id(key)] = made.check, value


def hooked(module: nn.Module) -> bool:
    """Whether the module has hooks, or a forward of its own in place of its class's."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
        or _any_global_hook()
    )


def registered(group: Any) -> bool:
    """Whether torch.distributed knows this process group: whether it was not destroyed."""
    return group in torch.distributed.distributed_c10d._world.pg_map


def timeout_of(group: Any) -> timedelta | None:
    """The timeout of this process group's collectives; None where it is unknown."""
    try:
        limit = group._get_backend(torch.device("cpu")).options._timeout
    except (AttributeError, RuntimeError):
        return None
    return limit if isinstance(limit, timedelta) else None


def device_of(group: Any) -> torch.device:
    """The device of small tensors in a collective of this process group: the CPU wherever that is supported."""
    try:
        kinds = [device.type for device in group._device_types]
    except (AttributeError, RuntimeError):
        kinds = []
    return torch.device("cpu" if not kinds or "cpu" in kinds else kinds[0])
