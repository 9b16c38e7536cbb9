"""A model that runs, and is afterwards what it was before, bit for bit, whatever happens in between.

    buffers       the model runs on clones of them; its own are put aside and never written
    modules       modes, hooks and attributes are written back
    parameters    requires_grad and grad are written back; no gradient is computed
    the process   random states (torch's on each device, NumPy's, Python's), autocast, deterministic and other flags

What runs in between must never be decided here.
"""

import random
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xhat.torch.internals import uncompiled

__all__ = ["Guarded", "guarded", "random_states_kept"]


class Guarded:
    """The buffers of a model in a guard: clones, which `reset` gives the values of the originals again."""

    def __init__(self) -> None:
        self.clones: dict[
            int, tuple[Tensor, Tensor]
        ] = {}  # of each original by its id: itself, and its clone

    def clone_of(self, buffer: Tensor) -> Tensor:
        """The clone of this buffer. Modules that share a buffer share the clone."""
        if id(buffer) not in self.clones:
            self.clones[id(buffer)] = buffer, buffer.detach().clone()
        return self.clones[id(buffer)][1]

    def reset(self) -> None:
        """Gives every clone the value of its original."""
        for original, clone in self.clones.values():
            clone.copy_(original)


@contextmanager
def guarded(model: nn.Module) -> Iterator[Guarded]:
    """Surrounds what runs the model, without gradients."""
    state = Guarded()
    with ExitStack() as stack:
        stack.enter_context(_flags_kept())
        stack.enter_context(random_states_kept())
        stack.enter_context(_parameters_kept(model))
        for module in model.modules():
            keep = _script_kept if isinstance(module, torch.jit.ScriptModule) else _module_kept
            stack.enter_context(keep(module, state))
        stack.enter_context(uncompiled())
        stack.enter_context(torch.no_grad())
        yield state


# ------------------------------------------------------------------------------------------------------ the modules

_HELD = (dict, OrderedDict, list, set)


@contextmanager
def _module_kept(module: nn.Module, state: Guarded) -> Iterator[None]:
    """A module's attributes, and the entries of its containers: parameters, buffers, children, hooks."""
    before = dict(vars(module))
    inside = [(value, _entries(value)) for value in before.values() if type(value) in _HELD]
    try:
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = state.clone_of(buffer)
        yield
    finally:
        vars(module).clear()
        vars(module).update(before)
        for value, entries in inside:
            if not _identical(_entries(value), entries):
                value.clear()
                (value.extend if isinstance(value, list) else value.update)(entries)


def _entries(value: Any) -> list[Any]:
    return list(value.items()) if isinstance(value, dict) else list(value)


def _identical(a: list[Any], b: list[Any]) -> bool:
    """Whether these are the same objects in the same order; an item of a dict is a pair."""
    if len(a) != len(b):
        return False
    pairs = zip(a, b, strict=True)
    return all(x is y or (type(x) is type(y) is tuple and _pair(x) == _pair(y)) for x, y in pairs)


def _pair(item: tuple[Any, ...]) -> tuple[Any, ...]:
    return item[0], *map(id, item[1:])


@contextmanager
def _script_kept(module: nn.Module, state: Guarded) -> Iterator[None]:
    """A module that torch.jit has compiled: its buffers are written back, since C++ holds them."""
    training = module.training
    buffers = [(b, b.detach().clone()) for b in module.buffers(recurse=False)]
    try:
        yield
    finally:
        module.training = training
        for buffer, value in buffers:
            if not _same_bits(buffer, value):
                buffer.data.copy_(value)


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two contiguous tensors have the same bits; NaN differs from NaN, which costs a copy at most."""
    return a.shape == b.shape and bool(torch.equal(a, b))


@contextmanager
def _parameters_kept(model: nn.Module) -> Iterator[None]:
    before = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    try:
        yield
    finally:
        for p, requires_grad, grad in before:
            if p.requires_grad != requires_grad:
                p.requires_grad_(requires_grad)
            if p.grad is not grad:
                p.grad = grad


# ------------------------------------------------------------------------------------------------------ the process


@contextmanager
def random_states_kept(seed: int | None = None) -> Iterator[None]:
    """The random states of torch on each device in use, of NumPy and of Python; seed: what they start from inside."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    devices = [
        (kind, kind.get_rng_state_all())
        for kind in (torch.cuda, getattr(torch, "xpu", None))
        if kind is not None and kind.is_initialized()
    ]
    on_mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    try:
        if seed is not None:
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        for kind, state in devices:
            kind.set_rng_state_all(state)
        if on_mps is not None:
            torch.mps.set_rng_state(on_mps)


@contextmanager
def _flags_kept() -> Iterator[None]:
    """Settings of torch that a model or a loader might change. Only what differs is set: setting may take seconds."""
    settings = list(_settings())
    before = [read() for read, _ in settings]
    try:
        yield
    finally:
        for (read, write), value in zip(settings, before, strict=True):
            if read() != value:
                write(value)


def _settings() -> Iterator[tuple[Callable[[], Any], Callable[[Any], Any]]]:
    """How each setting is read and written."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    for kind in ("cpu", *([accelerator.type] if accelerator is not None else [])):
        yield partial(torch.is_autocast_enabled, kind), partial(torch.set_autocast_enabled, kind)
        yield partial(torch.get_autocast_dtype, kind), partial(torch.set_autocast_dtype, kind)
    yield torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled
    yield (
        lambda: (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        lambda value: torch.use_deterministic_algorithms(value[0], warn_only=value[1]),
    )
    cudnn = torch.backends.cudnn
    yield lambda: cudnn.deterministic, partial(setattr, cudnn, "deterministic")
    yield lambda: cudnn.benchmark, partial(setattr, cudnn, "benchmark")
    yield torch.get_default_dtype, torch.set_default_dtype
    yield torch.get_float32_matmul_precision, torch.set_float32_matmul_precision
    yield torch.is_grad_enabled, torch.set_grad_enabled
    yield torch.get_num_threads, torch.set_num_threads
