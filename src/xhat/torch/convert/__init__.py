"""Whole models: torch's batch norms become ours, in place, and back. How calls are fused must never live here."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.parametrize import is_parametrized

from xhat.errors import ArgumentError, XhatError
from xhat.torch import layers
from xhat.torch.convert.fuse import fuse, unfuse
from xhat.torch.convert.match import kind_of, named_kind, passes
from xhat.torch.options import options_of

__all__ = ["OURS", "BatchNormAct2d", "Change", "adopt", "convert", "reason_to_leave", "revert"]

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Change:
    """What `convert` did with one batch norm of a model.

    path, also: where it is, first and elsewhere. before, after: its class. fused: what its call computes besides,
    "relu" or "add, relu". reason: why it was left as it is, or was not fused with what follows it.
    """

    path: str
    before: str
    after: str
    fused: str | None = None
    reason: str | None = None
    also: tuple[str, ...] = ()

    @property
    def converted(self) -> bool:
        """Whether its class is another one now."""
        return self.before != self.after

    def __str__(self) -> str:
        where = f"{self.path or '(the model)'}{''.join(f' = {path}' for path in self.also)}"
        what = f"{self.before} -> {self.after}" if self.converted else f"{self.before}, left as it is"
        fused = f", fused with {self.fused}" if self.fused else ""
        return f"{where}: {what}{fused}" + (f" ({self.reason})" if self.reason else "")


class BatchNormAct2d(layers.BatchNorm2d):
    """What timm's layer of this name becomes: its children drop and act follow the normalization.

    y = act(drop(bn(x) [+ residual])), at once if drop is Identity and act is ReLU, LeakyReLU, SiLU or Identity.
    """

    drop: nn.Module
    act: nn.Module
    torch_class: type[nn.BatchNorm2d]

    @property
    def along(self) -> Any:
        """The activation that the layer computes along with the rest, or None."""
        return kind_of(self.act) if passes(self.drop) else None

    def forward(
        self,
        input: Tensor,
        residual: Tensor | None = None,
        mask: Tensor | None = None,
        activation: Any = None,
    ) -> Tensor:
        """y; activation: for this call, in place of drop and act."""
        activation = activation or self.along
        y = super().forward(input, residual, mask, activation=activation)
        return y if activation is not None else self.act(self.drop(y))


OURS: dict[type[nn.Module], type[layers.BatchNorm]] = {
    nn.BatchNorm1d: layers.BatchNorm1d,
    nn.BatchNorm2d: layers.BatchNorm2d,
    nn.BatchNorm3d: layers.BatchNorm3d,
    nn.LazyBatchNorm1d: layers.LazyBatchNorm1d,
    nn.LazyBatchNorm2d: layers.LazyBatchNorm2d,
    nn.LazyBatchNorm3d: layers.LazyBatchNorm3d,
}
_TORCHS = {ours: theirs for theirs, ours in OURS.items()}
_STATE = (*layers.DEFAULTS, "skipped", "torch_class", "frozen_statistics", "frozen_affine")


def convert(model: M) -> tuple[M, list[Change]]:
    """Makes every batch norm of torch.nn in the model one of ours, and fuses activations that follow; says what it did.

    Layers change their class, in place: the modules themselves, their parameters, buffers, hooks, mode and places in
    the model stay. Calls of a layer, alone or with a sum, and an activation (ReLU, LeakyReLU, SiLU; a module, a
    function or a method) become one call where torch.fx shows that nothing else sees what lies between; the module
    that makes these calls becomes a subclass of its class, and falls back to its own forward whenever it was changed.
    What can't be converted is left, with the reason. Running statistics become float32 if they were narrower.

    Returns the model itself and one `Change` for each batch norm. Raises ArgumentError if it gets no module.
    Source: the layer's meaning is that of Ioffe and Szegedy 2015 in torch's conventions, before and after.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"convert: model is {type(model).__name__}, expected a torch.nn.Module.")
    found = list(_batch_norms(model))
    before = {path: _name(layer) for path, layer, _ in found}
    for _, layer, reason in found:
        if reason is None:
            adopt(layer)
    fused, missed = _fuse_all(model)
    places: dict[int, list[str]] = {}
    for path, layer in model.named_modules(remove_duplicate=False):
        places.setdefault(id(layer), []).append(path)
    changes = []
    for path, layer, reason in found:
        what = fused.get(layer)
        if isinstance(layer, BatchNormAct2d) and layer.along:
            what = named_kind(layer.along)
        if what is None and layer in missed:
            reason = f"{reason}; not fused: {missed[layer]}" if reason else f"not fused: {missed[layer]}"
        changes.append(Change(path, before[path], _name(layer), what, reason, tuple(places[id(layer)][1:])))
    return model, changes


def revert(model: M) -> M:
    """Makes every batch norm of ours in the model torch's again, unfused, with the same numbers; returns the model.

    Beside 16-bit parameters the running statistics are rounded to 16 bits: torch's layer refuses wider ones.
    Raises ArgumentError, and changes nothing, if a layer has options that torch's layer has not.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"revert: model is {type(model).__name__}, expected a torch.nn.Module.")
    ours = [(path, m) for path, m in model.named_modules() if isinstance(m, layers.BatchNorm)]
    problems = [f"{path or '(the model)'} has {why}" for path, m in ours for why in _inexpressible(m)]
    if problems:
        raise ArgumentError(
            f"revert: {'; '.join(problems)}, which torch's layer can't express. Nothing was changed. "
            "Set the options to torch's (xhat.torch.unfreeze for what is frozen), or revert the parts one by one."
        )
    for module in model.modules():
        unfuse(module)
    for _, layer in ours:
        _release(layer)
    return model


# ------------------------------------------------------------------------------------------------- finding layers


def _batch_norms(model: nn.Module) -> Iterator[tuple[str, nn.Module, str | None]]:
    """Path, layer and the reason to leave it of every batch norm, each layer once."""
    closed: dict[str, str] = {}  # parts of the model that are compiled or rewritten by others
    for path, module in model.named_modules():
        over = next((why for part, why in closed.items() if path.startswith(part)), None)
        if over is None and isinstance(module, torch.jit.ScriptModule):
            closed[f"{path}." if path else ""] = over = "it is compiled by torch.jit"
        elif over is None and type(module).__module__.startswith("torch.ao."):
            closed[f"{path}." if path else ""] = over = "torch.ao's modules use it in their own way"
        scripted = isinstance(module, torch.jit.ScriptModule) and "BatchNorm" in str(module.original_name)
        if isinstance(module, _BatchNorm) or scripted:
            yield path, module, over or reason_to_leave(module)


def reason_to_leave(m: nn.Module) -> str | None:
    """Why this batch norm can't become ours; None if it can."""
    if isinstance(m, layers.BatchNorm):
        return "it is xhat's already"
    if isinstance(m, nn.SyncBatchNorm):
        return "it exchanges statistics between processes"
    if is_parametrized(m):
        return "its parameters are parametrized"
    if "forward" in vars(m):
        return "its forward was replaced on the instance"
    if type(m) not in OURS and not _is_timms(m):
        own = type(m).forward is not nn.BatchNorm2d.forward
        return f"its class is a subclass of torch's with {'a forward' if own else 'a meaning'} of its own"
    taken = [name for name in _STATE if hasattr(m, name)]
    if taken:
        return f"it has an attribute {taken[0]!r} already"
    try:
        options_of(float(vars(m)["eps"]), 0, None)
    except XhatError as error:
        return str(error).rstrip(".")
    return None


def _is_timms(m: nn.Module) -> bool:
    """Whether this is timm's batch norm with dropout and activation, known by its looks: timm need not be there."""
    parts = (getattr(m, "drop", None), getattr(m, "act", None))
    return type(m).__name__ == "BatchNormAct2d" and all(isinstance(part, nn.Module) for part in parts)


def _fuse_all(model: nn.Module) -> tuple[dict[nn.Module, str], dict[nn.Module, str]]:
    """Fuses what can be, module by module: layer -> with what, and layer -> why not."""
    fused: dict[nn.Module, str] = {}
    missed: dict[nn.Module, str] = {}
    for module in list(model.modules()):
        mine = dict(_own_layers(module))
        if mine and not type(module).__module__.startswith("torch.ao."):
            done, reasons = fuse(module)
            fused |= {mine[f.layer]: f.what for f in done if f.layer in mine}
            for path, layer in mine.items():
                why = reasons.get(path) or reasons.get(path.split(".")[0])
                missed |= {layer: why} if why else {}
    return fused, missed


def _own_layers(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The layers of ours that this module itself calls: its children, and those in lists and dictionaries of them."""
    for name, child in module.named_children():
        if isinstance(child, layers.BatchNorm) and not isinstance(child, BatchNormAct2d):
            yield name, child
        elif type(child) in (nn.ModuleList, nn.ModuleDict):
            yield from ((f"{name}.{path}", layer) for path, layer in _own_layers(child))


def _name(module: nn.Module) -> str:
    """The class of a layer, as a user writes it."""
    kind = type(module)
    if isinstance(module, torch.jit.ScriptModule):
        return f"torch.jit.ScriptModule of {module.original_name}"
    public = {"torch.nn.modules.batchnorm": "torch.nn", "xhat.torch.layers": "xhat.torch"}
    return f"{public.get(kind.__module__, kind.__module__)}.{kind.__qualname__}"


# ------------------------------------------------------------------------------------------------- changing layers


def adopt(layer: nn.Module) -> None:
    """Makes torch's layer ours."""
    for name in ("running_mean", "running_var"):
        value = getattr(layer, name)
        if value is not None and not nn.parameter.is_lazy(value) and value.dtype.itemsize < 4:
            value.data = value.data.float()  # the tensor stays the one that others may hold
    kind = OURS.get(type(layer), BatchNormAct2d)
    state = layers.DEFAULTS | ({"torch_class": type(layer)} if kind is BatchNormAct2d else {})
    layer.__class__ = kind
    for name, value in state.items():
        setattr(layer, name, value)
    layer.register_buffer("skipped", None, persistent=False)


def _inexpressible(layer: layers.BatchNorm) -> Iterator[str]:
    """What this layer has and torch's layer can't have."""
    if type(layer) not in (*_TORCHS, BatchNormAct2d):
        yield f"the class {type(layer).__qualname__}"
    for name, default in layers.DEFAULTS.items():
        if getattr(layer, name) != default:
            yield f"{name}={getattr(layer, name)!r}"
    for what in ("statistics", "affine"):
        if getattr(layer, f"frozen_{what}"):
            yield f"frozen {what}"


def _release(layer: Any) -> None:
    """Makes our layer torch's."""
    kind: type[nn.Module] = layer.torch_class if isinstance(layer, BatchNormAct2d) else _TORCHS[type(layer)]
    for name in _STATE:
        if name in vars(layer) or name in layer._buffers:
            delattr(layer, name)
    if layer.weight is not None and layer.weight.dtype.itemsize < 4 and layer.running_mean is not None:
        for value in (layer.running_mean, layer.running_var):
            value.data = value.data.to(layer.weight.dtype)
    layer.__class__ = kind
