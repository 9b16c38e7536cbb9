"""A folded model beside the unfolded one in float64: at each site on the same inputs, and at the model's outputs.

What is folded, and what becomes of a site that fails, must never be decided here.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from xhat.torch.fold.graph import Inputs
from xhat.torch.fold.sites import Site

__all__ = ["Measured", "cast", "difference", "measure", "outputs"]


class Measured(NamedTuple):
    """What was found at one site, over all inputs and calls.

    calls     how often the site was reached
    reach     the largest |input| of the layers that took up the batch norms
    values    the largest |y| of the reference
    error     the largest |y - reference|, NaN where one is not finite
    unfolded  the same of the unfolded layers in their own dtype
    """

    calls: int = 0
    reach: float = 0.0
    values: float = 0.0
    error: float = 0.0
    unfolded: float = 0.0

    def with_call(self, reach: float, y: Tensor, reference: Tensor, unfolded: Tensor) -> "Measured":
        """With one more call of the site."""
        errors = (
            _largest(z.double() - reference) if z.shape == reference.shape else math.inf
            for z in (y, unfolded)
        )
        found = (reach, _largest(reference), *errors)
        largest = (max(a, b) if b == b else b for a, b in zip(self[1:], found, strict=True))
        return Measured(self.calls + 1, *largest)


def _largest(x: Tensor) -> float:
    return float(x.abs().max()) if x.numel() else 0.0


def cast(value: Any, dtype: torch.dtype | None) -> Any:
    """The value with its floating tensors in this dtype, copied, so that a model may change them; None: their own."""

    def one(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return (
            leaf.detach().to(dtype, copy=True)
            if dtype and leaf.is_floating_point()
            else leaf.detach().clone()
        )

    return _pytree.tree_map(one, value)


def outputs(model: nn.Module, inputs: Inputs, dtype: torch.dtype | None = None) -> list[Tensor]:
    """The tensors that the model returns for these inputs. Random numbers are the same in each call."""
    args, kwargs = cast(tuple(inputs), dtype)
    devices = {p.device for p in model.parameters() if p.is_cuda}
    with torch.no_grad(), torch.random.fork_rng(list(devices)):
        torch.manual_seed(0)
        found = model(*args, **kwargs)
    return list(_tensors(found))


def _tensors(value: Any) -> Iterator[Tensor]:
    """The tensors in what a model returns, whatever holds them."""
    if isinstance(value, Tensor):
        yield value.detach()
    elif isinstance(value, Mapping | list | tuple):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(part)
    elif hasattr(value, "__dict__"):
        yield from _tensors(vars(value))


def difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest |found - expected|, relative to the largest value of each tensor; infinite where shapes differ."""
    if not expected or [t.shape for t in found] != [t.shape for t in expected]:
        return math.inf
    worst = 0.0
    for a, b in zip(found, expected, strict=True):
        off = (a.double() - b.double()).abs()
        off[(a == b) | (a.isnan() & b.isnan())] = 0
        off = torch.where(off.isnan(), math.inf, off)
        scale = _largest(b.double()[b.double().isfinite()])
        worst = max(worst, _largest(off) / scale if scale else _largest(off))
    return worst


def measure(
    folded: nn.Module, sites: Sequence[Site], unfolded: nn.Module, reference: nn.Module, batches: Sequence[Inputs],
    dtype: torch.dtype | None,
) -> tuple[list[Measured], list[list[Tensor]]]:  # fmt: skip
    """Runs the folded model on all batches, and compares each site with the unfolded layers on the site's own inputs.

    Returns what was found at each site, and the model's outputs for each batch.

    reference: the unfolded model in float64. dtype: of the inputs. All three models must be copies: hooks are set, and
    the layers of `unfolded` and `reference` are called.
    """
    found = [Measured() for _ in sites]

    def note(k: int, call: "_Call") -> None:
        exact = call.through(reference, torch.float64)
        theirs = exact if unfolded is reference else call.through(unfolded, None)
        found[k] = found[k].with_call(call.reach(), call.y, exact, theirs)

    with ExitStack() as stack:
        for k, site in enumerate(sites):
            stack.enter_context(_watched(folded, site, lambda call, k=k: note(k, call)))
        returned = [outputs(folded, batch, dtype) for batch in batches]
    return found, returned


class _Call(NamedTuple):
    """One call of a site: the arguments of its first layers, of its layer behind `before`, and of its last."""

    site: Site
    given: dict[str, Inputs]
    y: Tensor

    def reach(self) -> float:
        """The largest |input| of the layers."""
        return max(_largest(self.given[path].args[0].double()) for path in self.site.into)

    def through(self, model: nn.Module, dtype: torch.dtype | None) -> Tensor:
        """y, by the layers of another model."""
        site, given = (
            self.site,
            {path: Inputs(*cast(tuple(call), dtype)) for path, call in self.given.items()},
        )
        with torch.no_grad():
            if site.before:
                z = model.get_submodule(site.before[0])(given[site.before[0]].args[0])
                shape = given[site.into[0]].args[0].shape
                if z.numel() == shape.numel():  # else it is padded on the way
                    z = z.reshape(shape)
                parts = [model.get_submodule(site.into[0])(z)]
            else:
                parts = [
                    model.get_submodule(path)(*given[path].args, **given[path].kwargs) for path in site.into
                ]
            y: Tensor = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
            if site.after:
                y = y.reshape(
                    given[site.after[-1]].args[0].shape
                )  # a linear layer's (N, L, C) may become (N L, C)
            for path in site.after:
                more = given[path] if path == site.after[-1] else Inputs((None,), {})
                y = model.get_submodule(path)(y, *more.args[1:], **more.kwargs)
        return y


@contextmanager
def _watched(model: nn.Module, site: Site, note: Any) -> Iterator[None]:
    """The site's calls are noted."""
    given: dict[str, Inputs] = {}
    last = site.after[-1] if site.after else site.into[0]

    def hook(path: str) -> Any:
        def called(module: nn.Module, args: Any, kwargs: Any, y: Any) -> None:
            given[path] = Inputs(args, kwargs)
            if path == last:
                note(_Call(site, dict(given), y))
                given.clear()

        return called

    paths = dict.fromkeys((*site.before, *site.into, last))
    handles = [
        model.get_submodule(path).register_forward_hook(hook(path), with_kwargs=True) for path in paths
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
