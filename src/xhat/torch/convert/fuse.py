"""Fused modules: methods in which batch norm, sum and activation are one call, guarded, with the original as fallback.

The class of a fused module is a subclass of its original class. Each of its methods evaluates its guards, calls the
fused code if all of them are true, and else the original method. It calls the original method also where torch.fx
traces, so that a graph has the nodes of the original, and where the original class's method was replaced since.
Which layers are converted must never be decided here.
"""

import functools
import itertools
import linecache
import math
import types
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from xhat.torch.convert.generated import reduce_generated
from xhat.torch.convert.match import (
    Fusion,
    activation_of,
    add_then_activate,
    fuse_calls,
    is_fusable,
    is_identity,
)
from xhat.torch.convert.source import UntraceableError
from xhat.torch.convert.trace import attribute_names, called_methods, trace
from xhat.torch.internals import symbolically_traced

__all__ = ["Fused", "fuse", "unfuse"]


class Recipe(NamedTuple):
    """What a fused class is made from: the original class, the fused methods, and the text for repr.

    A fused method is its name and its variants. A variant is the source of two functions, `guards_hold(self)` and
    `forward(self, ...)`.
    """

    original: type[nn.Module]
    methods: tuple[tuple[str, tuple[str, ...]], ...]
    summary: str


class Fused(nn.Module):
    """Mixin of fused classes. They pickle as a recipe, and their repr shows what is fused."""

    recipe_of_fusion: Recipe

    def extra_repr(self) -> str:
        """The original class's, and the layers with what each is fused with."""
        return ", ".join(filter(None, (super().extra_repr(), self.recipe_of_fusion.summary)))

    def __reduce_ex__(self, protocol: Any) -> Any:
        reduced = super().__reduce_ex__(max(2, protocol))
        return reduce_generated(reduced, _fused_class, type(self).recipe_of_fusion)


def fuse(module: Any) -> tuple[list[Fusion], dict[str, str]]:
    """Fuses the calls in this module's own methods.

    Returns the fusions, and the reasons for calls that were not fused, by a layer's path or the first name in it.
    """
    if isinstance(module, Fused):
        return [], {}
    if isinstance(module, torch.fx.GraphModule):
        return [], dict.fromkeys(module._modules, "a GraphModule writes its own forward")
    found: list[Fusion] = []
    methods: dict[str, tuple[str, ...]] = {}
    reasons: dict[str, str] = {}
    pending = ["forward"]
    for method in pending:
        try:
            fused, missed, variants = _fused_variants(module, method)
        except UntraceableError as error:
            reasons |= dict.fromkeys(attribute_names(module, method), str(error))
        else:
            found += fused
            reasons |= missed
            methods |= {method: variants} if fused else {}
        pending += sorted(called_methods(module, method) - set(pending))
    if methods:
        summary = "; ".join(f"{f.layer} with {f.what}" for f in found)
        module.__class__ = _fused_class(Recipe(type(module), tuple(methods.items()), f"fused: {summary}"))
    return found, reasons


def unfuse(module: Any) -> None:
    """Gives a fused module its original class again. Does nothing to others."""
    if isinstance(module, Fused):
        original: Any = type(module).recipe_of_fusion.original
        module.__class__ = original


# ---------------------------------------------------------------------------------------------- source of a method


def _fused_variants(module: nn.Module, method: str) -> tuple[list[Fusion], dict[str, str], tuple[str, ...]]:
    """The fusions, the missed ones, and the variants of a method: in training and, if it differs, in evaluation."""
    found: dict[Fusion, None] = {}
    missed: dict[str, str] = {}
    variants: dict[str, None] = {}
    refused: list[UntraceableError] = []
    before = module.training
    for mode in (True, False):
        module.training = mode  # of this module alone: the trace does not enter its children
        try:
            fused, why, source = _fused_source(module, method)
        except UntraceableError as error:
            refused.append(error)
        else:
            found |= dict.fromkeys(fused)
            missed |= why
            variants |= {source: None} if fused else {}
        finally:
            module.training = before
    if len(refused) == 2:
        raise refused[0]
    return list(found), missed, tuple(variants)


def _fused_source(module: nn.Module, method: str) -> tuple[list[Fusion], dict[str, str], str]:
    """The fusions, the missed ones, and the source of one variant."""
    graph, guards = trace(module, method)
    fused, missed = fuse_calls(graph, module)
    for node in graph.nodes:
        node.type = None  # an annotation would refer to names that are not in _NAMES
    code = graph.python_code("self")
    unknown = sorted(set(code.globals) - set(_NAMES))
    if unknown:
        raise UntraceableError(f"its {method} uses {', '.join(unknown)}")
    every = dict.fromkeys((*guards, *(guard for f in fused for guard in f.guards)))
    condition = " and ".join(f"({guard})" for guard in every)
    return fused, missed, f"def guards_hold(self):\n    return {condition}\n{code.src}"


# The global names of a variant's source.
_NAMES: dict[str, Any] = {
    "torch": torch,
    "device": torch.device,
    "inf": math.inf,
    "nan": math.nan,
    "NoneType": type(None),
    "pytree": torch.utils._pytree,
    "fx_pytree": torch.fx._pytree,
    "activation_of": activation_of,
    "is_identity": is_identity,
    "is_fusable": is_fusable,
    f"{add_then_activate.__module__}.add_then_activate".replace(
        ".", "_"
    ): add_then_activate,  # torch.fx's name for it
}


# ---------------------------------------------------------------------------------------------------- fused classes

# A weak cache: a fused class lives as long as a module uses it, and does not keep its original class alive.
_classes: weakref.WeakValueDictionary[Recipe, type[Fused]] = weakref.WeakValueDictionary()
_file_numbers = itertools.count()


def _fused_class(recipe: Recipe) -> type[Fused]:
    """The fused class of this recipe; the same class for the same recipe."""
    cached = _classes.get(recipe)
    return _classes.setdefault(recipe, _create_class(recipe)) if cached is None else cached


def _create_class(recipe: Recipe) -> type[Fused]:
    original = recipe.original
    members: dict[str, Any] = {"recipe_of_fusion": recipe, "__module__": original.__module__}
    members |= {"__doc__": original.__doc__, "__qualname__": original.__qualname__}
    for name, variants in recipe.methods:
        members[name] = _guarded_method(original, name, variants)
    return types.new_class(
        original.__name__, (Fused, original), exec_body=lambda namespace: namespace.update(members)
    )


def _guarded_method(kind: type[nn.Module], name: str, variants: tuple[str, ...]) -> Callable[..., Any]:
    """A method that calls the first variant whose guards hold, and the original class's method if there is none."""
    original = getattr(kind, name)
    compiled = [_compiled(source, f"{kind.__qualname__}.{name}") for source in variants]

    @functools.wraps(original)
    def method(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        present = getattr(kind, name)
        if present is original and not symbolically_traced(args, kwargs):
            for guards_hold, forward in compiled:
                if guards_hold(self):
                    return forward(self, *args, **kwargs)
        return present(self, *args, **kwargs)

    return method


def _compiled(source: str, label: str) -> tuple[Callable[..., bool], Callable[..., Any]]:
    """The two functions of a variant. Their source is registered with linecache, so that tracebacks show it."""
    file = f"<{label}, fused by xhat, {next(_file_numbers)}>"
    namespace = dict(_NAMES)
    exec(compile(source, file, "exec"), namespace)
    linecache.cache[file] = (len(source), None, source.splitlines(True), file)
    weakref.finalize(namespace["forward"], linecache.cache.pop, file, None)
    return namespace["guards_hold"], namespace["forward"]
