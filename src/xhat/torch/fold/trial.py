"""The folds of a model, tried: what fails the comparison with float64 is taken out, until all that remains holds.

How models are compared is in `verify`; what may be folded is in `sites`.
"""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from xhat.errors import ArgumentError
from xhat.torch.convert.source import UntraceableError
from xhat.torch.errors import first_line
from xhat.torch.fold.graph import Inputs, graph_of
from xhat.torch.fold.norms import is_norm
from xhat.torch.fold.parts import Parts, apply
from xhat.torch.fold.sites import Planner, Site, folded_weights
from xhat.torch.fold.verify import Measured, cast, difference, measure, outputs
from xhat.torch.fold.weights import bound, products

__all__ = ["Trial", "sites_of"]

# A fold of unrounded weights in float64 differs from the original by some 1e-15; a wrong one by much more than these.
SITE_TOLERANCE, OUTPUT_TOLERANCE = 1e-9, 1e-7


def sites_of(
    model: nn.Module, inputs: Inputs | None, shared: dict[str, str]
) -> tuple[list[Site], dict[str, str], set[str]]:
    """The sites of the model, why other batch norms stay, and which are called with more than their input.

    shared: what `shared_memory` found in the caller's model; a copy of it shares less.

    Raises ArgumentError if the model does not run with these inputs.
    """
    ndim, options = _norm_inputs(copy.deepcopy(model), inputs) if inputs else ({}, set())
    try:
        graph = graph_of(copy.deepcopy(model), inputs and Inputs(*cast(tuple(inputs), None)))
    except UntraceableError as error:
        return [], {path: str(error) for path, m in model.named_modules() if is_norm(m)}, options
    planner = Planner(model, graph, ndim, options, shared)
    planner.plan()
    return planner.sites, planner.reasons, options


def _norm_inputs(model: nn.Module, inputs: Inputs) -> tuple[dict[str, int], set[str]]:
    """The number of dimensions of each batch norm's input, and the batch norms that are called with more than that."""
    ndim: dict[str, int] = {}
    options: set[str] = set()

    def hook(path: str) -> Any:
        def called(norm: nn.Module, args: Any, kwargs: Any) -> None:
            ndim[path] = args[0].dim() if args and isinstance(args[0], Tensor) else 0
            if len(args) != 1 or any(value is not None for value in kwargs.values()):
                options.add(path)

        return called

    for path, norm in model.named_modules():
        if is_norm(norm):
            norm.register_forward_pre_hook(hook(path), with_kwargs=True)
    try:
        outputs(model, inputs)
    except Exception as error:  # the caller's model, with the caller's inputs
        raise ArgumentError(
            f"fold: the model raises an error for example_inputs: {first_line(error)}."
        ) from error
    return ndim, options


class Trial:
    """Folds the sites in a copy of `original`, and keeps those that hold on all inputs.

    After `run`: `folded`, the model; for each of `sites`, `parts` and `measured`; `reasons` of those that did not hold.
    """

    def __init__(
        self, original: nn.Module, sites: list[Site], options: set[str], inputs: Sequence[Inputs]
    ) -> None:
        self.original, self.sites, self.options, self.inputs = original, sites, options, inputs
        self.reasons: dict[str, str] = {}
        self.parts: list[Parts] = []
        self.measured: list[Measured] = []
        self.folded = original

    def run(self) -> None:
        """Folds, compares and takes out, until everything that is folded holds."""
        exact = copy.deepcopy(self.original).double()
        try:
            self.expected = self._outputs(exact)
            self.tolerance = OUTPUT_TOLERANCE + 10 * self._noise(exact)
        except Exception as error:
            self._undo(self.sites, f"the model does not run in float64, to verify it: {first_line(error)}")
        while True:
            failed = self._failures_in_float64(exact, self.sites) or self._fold(exact)
            if not failed:
                return
            for site, why in failed.items():
                self._undo([site], f"folded into {', '.join(site.into)} and undone: {why}")

    def bound_of(self, k: int) -> float:
        """How far the rounding of this site's weights moves its output at most, on the inputs."""
        site, reach = self.sites[k], self.measured[k].reach
        layers = [self.original.get_submodule(path) for path in site.into]
        computed = folded_weights(self.original, site)
        return max(bound(x, w, reach, _dtype(x)) for x, w in zip(layers, computed, strict=True))

    def _undo(self, sites: Sequence[Site], why: str) -> None:
        for site in sites:
            self.reasons |= dict.fromkeys(site.norms, why)
        self.sites = [site for site in self.sites if site not in sites]

    def _outputs(self, exact: nn.Module, factor: float = 1.0) -> list[list[Tensor]]:
        """The outputs in float64, with the inputs times this factor."""
        found = []
        for batch in self.inputs:
            scaled = Inputs(*cast(tuple(batch), torch.float64))
            for leaf in torch.utils._pytree.tree_leaves(scaled):
                if isinstance(leaf, Tensor) and leaf.is_floating_point():
                    leaf.mul_(factor)
            found.append(outputs(copy.deepcopy(exact), scaled))
        return found

    def _noise(self, exact: nn.Module) -> float:
        """How far the outputs move with the inputs' last digits: a model that rounds to float32 inside does more."""
        moved = self._outputs(exact, 1 + 1e-13)
        return max(difference(a, b) for a, b in zip(moved, self.expected, strict=True))

    def _failures_in_float64(self, exact: nn.Module, sites: list[Site]) -> dict[Site, str]:
        """What does not hold with unrounded weights."""
        if not sites:
            return {}
        folded = copy.deepcopy(exact)
        try:
            apply(folded, exact, sites, self.options)
            measured, returned = measure(folded, sites, exact, exact, self.inputs, torch.float64)
        except Exception as error:
            why = f"the folded model raises an error: {first_line(error)}"
        else:
            checked = {site: self._failure(exact, site, m) for site, m in zip(sites, measured, strict=True)}
            failed = {site: text for site, text in checked.items() if text}
            off = max(difference(a, b) for a, b in zip(returned, self.expected, strict=True))
            if failed or off <= self.tolerance:
                return failed
            why = f"the model's outputs are off by {off:.2g} of their largest value"
        if len(sites) == 1:
            return {sites[0]: why}
        single: dict[Site, str] = {}
        for site in sites:
            single |= self._failures_in_float64(exact, [site])
        return single or dict.fromkeys(sites, why)

    @staticmethod
    def _failure(exact: nn.Module, site: Site, measured: Measured) -> str | None:
        """What does not hold at this site, with unrounded weights."""
        if not measured.calls:
            return "the model does not call the layer as a module"
        layers, computed = [exact.get_submodule(p) for p in site.into], folded_weights(exact, site)
        terms = (bound(x, w, measured.reach, torch.float64) for x, w in zip(layers, computed, strict=True))
        allowed = SITE_TOLERANCE * (max(terms) / torch.finfo(torch.float64).eps + measured.values)
        return None if measured.error <= allowed else f"its output is off by {measured.error:.2g} in float64"

    def _fold(self, exact: nn.Module) -> dict[Site, str]:
        """Folds with rounded weights, and returns what does not hold."""
        self.folded = copy.deepcopy(self.original)
        self.parts = apply(self.folded, self.original, self.sites, self.options)
        unfolded, running = copy.deepcopy(self.original), copy.deepcopy(self.folded)
        self.measured, _ = measure(running, self.sites, unfolded, exact, self.inputs, None)
        failed = {}
        for k, (site, found) in enumerate(zip(self.sites, self.measured, strict=True)):
            terms = max(products(self.original.get_submodule(path)) for path in site.into)
            if not found.error <= 2 * found.unfolded + (terms + 64) * self.bound_of(k):
                failed[site] = f"its output is off by {found.error:.2g} (unfolded: {found.unfolded:.2g})"
        return failed


def _dtype(layer: Any) -> torch.dtype:
    dtype: torch.dtype = (layer.running_mean if layer.weight is None else layer.weight).dtype
    return dtype
