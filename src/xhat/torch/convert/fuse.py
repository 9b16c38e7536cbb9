"""Gives modules a forward in which batch norm, sum and activation are one call, and takes it back.

A fused module becomes an instance of a subclass of its class. Each call asks first whether the module is still as it
was traced; if it is not, the original method runs. Which layers are converted must never be decided here.
"""

import copyreg
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

from xhat.torch.convert.guards import UnfaithfulError
from xhat.torch.convert.match import Fusion, add_then_activate, fuse_calls, kind_of, passes, ready
from xhat.torch.convert.trace import called_methods, mentioned, trace

__all__ = ["Fused", "fuse", "unfuse"]


class Recipe(NamedTuple):
    """What makes a fused class: the original one, its rewritten methods, and what repr says of them.

    A method is its name and its variants, each the source of `holds(self)` and `forward(self, ...)`.
    """

    original: type[nn.Module]
    methods: tuple[tuple[str, tuple[str, ...]], ...]
    words: str


class Fused(nn.Module):
    """Mixin of fused classes: pickles as the original class and a recipe, and says in repr what is fused."""

    recipe_of_fusion: Recipe

    def extra_repr(self) -> str:
        """The original's, and which layers are called together with what."""
        return ", ".join(filter(None, (super().extra_repr(), self.recipe_of_fusion.words)))

    def __reduce_ex__(self, protocol: Any) -> Any:
        made = super().__reduce_ex__(max(2, protocol))
        if not isinstance(made, tuple) or made[0] is not copyreg.__newobj__:  # type: ignore[attr-defined]
            return made  # the original class has its own way
        return (_remake, (type(self).recipe_of_fusion, *made[1][1:]), *made[2:])


def fuse(module: Any) -> tuple[list[Fusion], dict[str, str]]:
    """Fuses what can be in this module's own methods; returns it, and, by path or its start, why not more."""
    if isinstance(module, Fused):
        return [], {}
    if isinstance(module, torch.fx.GraphModule):
        return [], dict.fromkeys(module._modules, "a GraphModule writes its own forward")
    found: list[Fusion] = []
    methods: dict[str, tuple[str, ...]] = {}
    reasons: dict[str, str] = {}
    waiting = ["forward"]
    for method in waiting:
        try:
            fused, missed, sources = _rewritten(module, method)
        except UnfaithfulError as error:
            reasons |= dict.fromkeys(mentioned(module, method), str(error))
        else:
            found += fused
            reasons |= missed
            methods |= {method: sources} if fused else {}
        waiting += sorted(called_methods(module, method) - set(waiting))
    if methods:
        words = "; ".join(f"{f.layer} with {f.what}" for f in found)
        module.__class__ = _fused_class(Recipe(type(module), tuple(methods.items()), f"fused: {words}"))
    return found, reasons


def unfuse(module: Any) -> None:
    """Gives a fused module its original class again; does nothing to others."""
    if isinstance(module, Fused):
        original: Any = type(module).recipe_of_fusion.original
        module.__class__ = original


# -------------------------------------------------------------------------------------------- source and classes


def _rewritten(module: nn.Module, method: str) -> tuple[list[Fusion], dict[str, str], tuple[str, ...]]:
    """What is fused in this method, what stood in the way, and its variants: for training and for evaluation."""
    found: dict[Fusion, None] = {}
    missed: dict[str, str] = {}
    sources: dict[str, None] = {}
    refused: list[UnfaithfulError] = []
    before = module.training
    for mode in (True, False):
        module.training = mode  # of this module alone: its children are not looked into
        try:
            fused, why, source = _variant(module, method)
        except UnfaithfulError as error:
            refused.append(error)
        else:
            found |= dict.fromkeys(fused)
            missed |= why
            sources |= {source: None} if fused else {}
        finally:
            module.training = before
    if len(refused) == 2:
        raise refused[0]
    return list(found), missed, tuple(sources)


def _variant(module: nn.Module, method: str) -> tuple[list[Fusion], dict[str, str], str]:
    graph, conditions = trace(module, method)
    fused, missed = fuse_calls(graph, module)
    for node in graph.nodes:
        node.type = None  # an annotation would need names that the source has not
    code = graph.python_code("self")
    unknown = sorted(set(code.globals) - set(_NAMES))
    if unknown:
        raise UnfaithfulError(f"its {method} uses {', '.join(unknown)}")
    every = dict.fromkeys((*conditions, *(c for f in fused for c in f.conditions)))
    return fused, missed, f"def holds(self):\n    return {' and '.join(f'({c})' for c in every)}\n{code.src}"


_NAMES: dict[str, Any] = {  # all that such a source may know
    "torch": torch,
    "device": torch.device,
    "inf": math.inf,
    "nan": math.nan,
    "NoneType": type(None),
    "pytree": torch.utils._pytree,
    "fx_pytree": torch.fx._pytree,
    "kind_of": kind_of,
    "passes": passes,
    "ready": ready,
    "xhat_torch_convert_match_add_then_activate": add_then_activate,
}
_numbers = itertools.count()


# By recipe, while a module has it: it is to go with the last one, and the original class with it.
_classes: weakref.WeakValueDictionary[Recipe, type[Fused]] = weakref.WeakValueDictionary()


def _fused_class(recipe: Recipe) -> type[Fused]:
    """The subclass that this recipe describes; the same one for the same recipe."""
    made = _classes.get(recipe)
    return _classes.setdefault(recipe, _made_class(recipe)) if made is None else made


def _made_class(recipe: Recipe) -> type[Fused]:
    original = recipe.original
    members: dict[str, Any] = {"recipe_of_fusion": recipe, "__module__": original.__module__}
    members |= {"__doc__": original.__doc__, "__qualname__": original.__qualname__}
    for name, sources in recipe.methods:
        members[name] = _method(getattr(original, name), sources, f"{original.__qualname__}.{name}")
    return types.new_class(
        original.__name__, (Fused, original), exec_body=lambda space: space.update(members)
    )


def _method(original: Callable[..., Any], sources: tuple[str, ...], label: str) -> Callable[..., Any]:
    """The original method, or, where its conditions hold, the first of these variants."""
    variants = [_compiled(source, label) for source in sources]

    @functools.wraps(original)
    def method(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        for holds, forward in variants:
            if holds(self):
                return forward(self, *args, **kwargs)
        return original(self, *args, **kwargs)

    return method


def _compiled(source: str, label: str) -> tuple[Callable[..., bool], Callable[..., Any]]:
    """The functions of a variant; tracebacks show their source."""
    file = f"<{label}, fused by xhat, {next(_numbers)}>"
    space = dict(_NAMES)
    exec(compile(source, file, "exec"), space)
    linecache.cache[file] = (len(source), None, source.splitlines(True), file)
    weakref.finalize(space["forward"], linecache.cache.pop, file, None)
    return space["holds"], space["forward"]


def _remake(recipe: Recipe, *args: Any) -> nn.Module:
    """For pickle and deepcopy: an empty module of the fused class."""
    made = _fused_class(recipe)
    return made.__new__(made, *args)
