"""What is kept from the forward to the backward pass: the inputs of blocks alone, or all of it, here or elsewhere."""

import itertools
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.checkpoint import checkpoint

from xhat.errors import ArgumentError

__all__ = ["Keep", "blocks", "check_keep", "keeping", "recomputed"]

Keep = Callable[[], AbstractContextManager[Any]]  # what surrounds each walker's forward pass


def check_keep(keep: Any) -> None:
    """Raises ArgumentError for what can't be kept in this way."""
    if keep not in ("inputs", "all", "host") and not (isinstance(keep, (str, Path)) and Path(keep).is_dir()):
        raise ArgumentError(
            f"accumulate: keep is {str(keep)!r}, expected 'inputs', 'all', 'host', or the path of a folder that exists."
        )


@contextmanager
def keeping(model: nn.Module, keep: str | Path, layers: list[nn.Module]) -> Iterator[Keep]:
    """Prepares the model, and gives what surrounds each forward pass."""
    if keep == "all":
        yield nullcontext
    elif keep == "inputs":
        with ExitStack() as stack:
            for block in blocks(model, set(layers)):
                stack.enter_context(recomputed(block))
            yield nullcontext
    elif keep == "host":
        yield partial(saved_tensors_hooks, *_elsewhere(model, _on_the_host))
    else:
        with tempfile.TemporaryDirectory(dir=keep, prefix="xhat-") as folder:
            yield partial(saved_tensors_hooks, *_elsewhere(model, _Files(Path(folder))))


# ------------------------------------------------------------------------------------------------ blocks recomputed

Block = tuple[nn.Module, Callable[..., Any]]  # and what its forward is in the walk


def blocks(model: nn.Module, layers: set[nn.Module]) -> list[Block]:
    """The smallest modules with two or more of these layers, and modules with one that are in none of them.

    A Sequential is cut into runs of two layers.
    """
    counts = {child: sum(m in layers for m in child.modules()) for child in model.children()}
    if sum(counts.values()) == 0:
        return []
    container = isinstance(model, (nn.ModuleList, nn.ModuleDict))
    if not container and max(counts.values()) < 2:
        return [_block(model, counts)]
    return [block for child in counts if child not in layers for block in blocks(child, layers)]


def _block(module: nn.Module, counts: dict[nn.Module, int]) -> Block:
    if type(module).forward is not nn.Sequential.forward or sum(counts.values()) <= 3:
        return module, partial(_repeatable, module.forward)
    runs: list[list[nn.Module]] = [[]]
    for child in module.children():
        full = sum(counts[m] for m in runs[-1]) >= 2
        if full and not counts[child] and any(True for _ in child.parameters()):
            runs.append([])
        runs[-1].append(child)
    return module, partial(_run_by_run, runs)


def _repeatable(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The function's value, as a region of activation checkpointing.

    Tensors in lists and dicts are arguments of the region too: the caller may go on to fill a list.
    """
    leaves, structure = tree_flatten((args, kwargs))

    def run(*leaves: Any) -> Any:
        args, kwargs = tree_unflatten(leaves, structure)
        return forward(*args, **kwargs)

    return checkpoint(run, *leaves, use_reentrant=False)


def _run_by_run(runs: list[list[nn.Module]], input: Any) -> Any:
    for run in runs:
        input = _repeatable(partial(_in_turn, run), input)
    return input


def _in_turn(run: list[nn.Module], input: Any) -> Any:
    for module in run:
        input = module(input)
    return input


@contextmanager
def recomputed(block: Block) -> Iterator[None]:
    """The block as a region of activation checkpointing."""
    module, forward = block
    own = vars(module).get("forward")
    vars(module)["forward"] = forward
    try:
        yield
    finally:
        vars(module).pop("forward")
        if own is not None:
            vars(module)["forward"] = own


# ---------------------------------------------------------------------------------------- saved tensors elsewhere

Place = Callable[
    [Tensor], Callable[[], Tensor]
]  # puts a copy somewhere, and gives a function that brings it back


def _elsewhere(model: nn.Module, place: Place) -> tuple[Callable[[Tensor], Any], Callable[[Any], Tensor]]:
    """Hooks that put each storage somewhere else once, but parameters and buffers."""
    own = {t.untyped_storage().data_ptr() for t in itertools.chain(model.parameters(), model.buffers())}
    known: weakref.WeakValueDictionary[tuple[int, int], _Copy] = weakref.WeakValueDictionary()

    def pack(t: Tensor) -> Any:
        unusual = t.layout is not torch.strided or t.is_conj() or t.is_neg() or not t.numel()
        if unusual or t.untyped_storage().data_ptr() in own:
            return t
        # A copy is found again while the tensor it is of is alive, unchanged.
        key = (t.untyped_storage()._cdata, t._version)
        copy = known.get(key)
        if copy is None or copy.owner() is None:
            copy = known[key] = _Copy(t, place)
        return copy, t.shape, t.stride(), t.storage_offset(), t.dtype

    def unpack(packed: Any) -> Tensor:
        if isinstance(packed, Tensor):
            return packed
        copy, *view, dtype = packed
        whole: Tensor = copy.bring()
        return whole.view(dtype).as_strided(*view)

    return pack, unpack


class _Copy:
    """The bytes of one storage."""

    def __init__(self, t: Tensor, place: Place) -> None:
        self.owner = weakref.ref(t.untyped_storage())
        storage = t.detach().untyped_storage()
        whole = torch.empty(0, dtype=torch.uint8, device=t.device).set_(storage)
        self.bring = place(whole)


def _on_the_host(whole: Tensor) -> Callable[[], Tensor]:
    device, pinned = whole.device, whole.device.type != "cpu"
    copy = torch.empty(whole.shape, dtype=whole.dtype, pin_memory=pinned).copy_(whole)
    return lambda: copy.to(device)


class _Files:
    """A file for each copy, which goes with it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.numbers = folder, itertools.count()

    def __call__(self, whole: Tensor) -> Callable[[], Tensor]:
        path, device = self.folder / str(next(self.numbers)), whole.device
        whole.cpu().numpy().tofile(path)

        def bring() -> Tensor:
            return torch.from_numpy(np.fromfile(path, np.uint8)).to(device)

        weakref.finalize(bring, path.unlink, missing_ok=True)
        return bring
