"""What only torch's private names can tell: which transform, tracer or pass is running. The one file that uses them."""

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["differentiating_forward", "plain", "recomputing", "tracing", "transforming"]

_transforms_active = torch._C._are_functorch_transforms_active
_modes = torch._C._len_torch_dispatch_stack
_task = torch._C._current_graph_task_id
_tracing_state = torch._C._get_tracing_state
_is_compiling = torch.compiler.is_compiling

_PLAIN = (Tensor, torch.nn.Parameter)


def transforming() -> bool:
    """Whether torch.func (grad, vjp, jvp, vmap, ...) is looking: every operation must be one of torch's own."""
    return _transforms_active()


def differentiating_forward() -> bool:
    """Whether a forward-mode level is open: tensors may carry tangents, which a kernel would drop in silence."""
    return forward_ad._current_level >= 0


def tracing() -> bool:
    """Whether a graph is being recorded (compile, export, make_fx, fake tensors): it must hold an operator."""
    return _is_compiling() or _modes() > 0 or _tracing_state() is not None


def recomputing() -> bool:
    """Whether autograd's backward pass is running: a forward in it repeats one that was already counted."""
    return _task() != -1


def plain(*tensors: Tensor | None) -> bool:
    """Whether these are ordinary CPU tensors, which have an address that holds their numbers."""
    for t in tensors:
        if t is not None and not (
            type(t) in _PLAIN
            and t.is_cpu
            and t.layout is torch.strided
            and not t.is_neg()
            and not t._is_zerotensor()
        ):
            return False
    return True
