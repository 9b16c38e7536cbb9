"""Whole models: every batch norm of torch becomes one of xhat's in place, and torch's again.

How a layer is converted (`layers`) and how calls are fused (`fuse`) must never be decided here.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from xhat.errors import ArgumentError
from xhat.torch.convert.fuse import fuse, unfuse
from xhat.torch.convert.layers import (
    BatchNormAct2d,
    class_name,
    convert_layer,
    inexpressible_options,
    reason_to_leave,
    revert_layer,
)
from xhat.torch.convert.match import activation_name
from xhat.torch.convert.quantization import register_fusions
from xhat.torch.nn import BatchNorm

__all__ = ["BatchNormAct2d", "Change", "convert", "revert"]

M = TypeVar("M", bound=nn.Module)

register_fusions()


@dataclass(frozen=True)
class Change:
    """What `convert` did with one batch norm of a model.

    Print it for a line of text.

    Attributes
    ----------
    path : str
        The layer's path in the model.
    before, after : str
        Its class before and after.
    fused : str or None
        What is computed in the same call: "relu" or "add, relu", for example.
    reason : str or None
        Why the layer was left as it is, or was not fused with the operation that follows it.
    also : tuple of str
        The layer's other paths if it is registered more than once.

    Examples
    --------
    >>> import torch
    >>> import xhat.torch as xt
    >>> model, changes = xt.convert(torch.nn.Sequential(torch.nn.BatchNorm1d(2)))
    >>> changes[0].path, changes[0].converted
    ('0', True)
    """

    path: str
    before: str
    after: str
    fused: str | None = None
    reason: str | None = None
    also: tuple[str, ...] = ()

    @property
    def converted(self) -> bool:
        """Whether the layer's class has changed."""
        return self.before != self.after

    def __str__(self) -> str:
        where = f"{self.path or '(the model)'}{''.join(f' = {path}' for path in self.also)}"
        what = f"{self.before} -> {self.after}" if self.converted else f"{self.before}, left as it is"
        fused = f", fused with {self.fused}" if self.fused else ""
        return f"{where}: {what}{fused}" + (f" ({self.reason})" if self.reason else "")


def convert(model: M) -> tuple[M, list[Change]]:
    r"""Turn the batch norms in a model into xhat's, and fuse the activations that follow them.

    The model is changed in place; `revert` undoes it.

    Parameters
    ----------
    model : torch.nn.Module
        Any model, or a single layer. Batch norms are those of torch.nn and timm.

    Returns
    -------
    model : torch.nn.Module
        The model itself.
    changes : list of Change
        What was done with each batch norm. Print them.

    Raises
    ------
    ArgumentError
        If ``model`` is not a module.

    See Also
    --------
    convert_sync : Turn every batch norm into a `SyncBatchNorm`.
    revert : The other direction.

    Notes
    -----
    Layers change their class in place. The modules themselves, their parameters, buffers, hooks, training mode and
    places in the model stay the same. A layer that can't be converted is left, and its `Change` has the reason. 16-bit
    running statistics become float32.

    A call of a layer and a following activation (ReLU, LeakyReLU or SiLU, as a module, function or method), with or
    without a sum between them, become one call if torch.fx shows that nothing else uses the values in between. The
    class of the module that makes these calls becomes a subclass of itself, which runs the original forward whenever
    the module has been changed since.

    Examples
    --------
    >>> import torch
    >>> import xhat.torch as xt
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.ReLU())
    >>> model, changes = xt.convert(model)
    >>> print(*changes, sep="\n")
    1: torch.nn.BatchNorm1d -> xhat.torch.BatchNorm1d, fused with relu
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"convert: model is {type(model).__name__}, expected a torch.nn.Module.")
    found = list(_batch_norms(model))
    before = {path: class_name(layer) for path, layer, _ in found}
    for _, layer, reason in found:
        if reason is None:
            convert_layer(layer)
    fused, missed = _fuse_all(model)
    paths: dict[int, list[str]] = {}
    for path, layer in model.named_modules(remove_duplicate=False):
        paths.setdefault(id(layer), []).append(path)
    changes = []
    for path, layer, reason in found:
        what = fused.get(layer)
        if isinstance(layer, BatchNormAct2d) and layer.fused_activation:
            what = activation_name(layer.fused_activation)
        if what is None and layer in missed:
            reason = f"{reason}; not fused: {missed[layer]}" if reason else f"not fused: {missed[layer]}"
        changes.append(
            Change(path, before[path], class_name(layer), what, reason, tuple(paths[id(layer)][1:]))
        )
    return model, changes


def revert(model: M) -> M:
    """Turn xhat's batch norms in a model back into torch's, unfused, with the same values.

    Parameters
    ----------
    model : torch.nn.Module
        A model with layers of xhat's. It is changed in place.

    Returns
    -------
    torch.nn.Module
        The model itself.

    Raises
    ------
    ArgumentError
        If ``model`` is not a module, or if a layer has options that torch's layer does not have. Then nothing has
        changed.

    See Also
    --------
    convert : The other direction.

    Notes
    -----
    A layer gets the class that it had before `convert` or `convert_sync`; a `SyncBatchNorm` that had no other becomes
    `torch.nn.SyncBatchNorm`. The running statistics of a layer with 16-bit parameters are rounded to 16 bits: torch
    refuses wider ones.

    Examples
    --------
    >>> import torch
    >>> import xhat.torch as xt
    >>> type(xt.revert(xt.BatchNorm1d(2)))
    <class 'torch.nn.modules.batchnorm.BatchNorm1d'>
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"revert: model is {type(model).__name__}, expected a torch.nn.Module.")
    found = [(path, m) for path, m in model.named_modules() if isinstance(m, BatchNorm)]
    problems = [f"{path or '(the model)'} has {why}" for path, m in found for why in inexpressible_options(m)]
    if problems:
        raise ArgumentError(
            f"revert: {'; '.join(problems)}, which torch's layer can't express. Nothing was changed. "
            "Set the options to torch's (xhat.torch.unfreeze for what is frozen), or revert the parts one by one."
        )
    for module in model.modules():
        unfuse(module)
    for _, layer in found:
        revert_layer(layer)
    return model


def _batch_norms(model: nn.Module) -> Iterator[tuple[str, nn.Module, str | None]]:
    """Path, layer and reason to leave it (or None) of every batch norm, each layer once."""
    closed: dict[str, str] = {}  # prefixes of paths that are compiled by torch.jit or rewritten by torch.ao
    for path, module in model.named_modules():
        over = next((why for prefix, why in closed.items() if path.startswith(prefix)), None)
        if over is None and isinstance(module, torch.jit.ScriptModule):
            closed[f"{path}." if path else ""] = over = "it is compiled by torch.jit"
        elif over is None and type(module).__module__.startswith("torch.ao."):
            closed[f"{path}." if path else ""] = over = "torch.ao's modules use it in their own way"
        scripted = isinstance(module, torch.jit.ScriptModule) and "BatchNorm" in str(module.original_name)
        if isinstance(module, _BatchNorm) or scripted:
            yield path, module, over or reason_to_leave(module)


def _fuse_all(model: nn.Module) -> tuple[dict[nn.Module, str], dict[nn.Module, str]]:
    """Fuses the calls of each module: layer -> what it is fused with, and layer -> why it is not fused."""
    fused: dict[nn.Module, str] = {}
    missed: dict[nn.Module, str] = {}
    for module in list(model.modules()):
        called = dict(_layers_called_by(module))
        if called and not type(module).__module__.startswith("torch.ao."):
            done, reasons = fuse(module)
            fused |= {called[f.layer]: f.what for f in done if f.layer in called}
            for path, layer in called.items():
                why = reasons.get(path) or reasons.get(path.split(".")[0])
                missed |= {layer: why} if why else {}
    return fused, missed


def _layers_called_by(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layers of xhat that this module calls: its children, and those in its ModuleLists and ModuleDicts."""
    for name, child in module.named_children():
        if isinstance(child, BatchNorm) and not isinstance(child, BatchNormAct2d):
            yield name, child
        elif type(child) in (nn.ModuleList, nn.ModuleDict):
            yield from ((f"{name}.{path}", layer) for path, layer in _layers_called_by(child))
