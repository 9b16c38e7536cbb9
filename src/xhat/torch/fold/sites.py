"""Which batch norms of a graph go into which layers, and why the others stay.

The arithmetic and the verification must never live here.
"""

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from xhat.torch.fold.graph import Graph, tensors_of
from xhat.torch.fold.norms import Affine, affine, is_norm, reason_against, remainder
from xhat.torch.fold.weights import Weights, map_after, map_before, parameters
from xhat.torch.internals import hooked

__all__ = ["Planner", "Site", "folded_weights", "shared_memory"]


@dataclass(eq=False)
class Site:
    """Layers that take up batch norms: before -> into -> after[0] -> after[1] ..., as paths.

    More than one layer in `into`: their outputs are concatenated, and the batch norms behind take all of them. border:
    the layer pads the output of `before` with zeros.
    """

    into: tuple[str, ...]
    before: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    border: bool = False

    @property
    def norms(self) -> list[str]:
        """The batch norms that are folded here."""
        return [*self.before, *self.after]


@torch.no_grad()
def folded_weights(model: nn.Module, site: Site) -> list[Weights]:
    """The weights of the layers of this site, with its batch norms folded in, in float64, from the unfolded model."""
    layers = [model.get_submodule(path) for path in site.into]
    found = [parameters(layer) for layer in layers]
    for path in site.before:
        found = [map_before(layers[0], found[0], affine(model.get_submodule(path)))]
    for path in site.after:
        parts = (v.split([len(w.bias) for w in found]) for v in affine(model.get_submodule(path)))
        maps = map(Affine, *parts)
        found = [map_after(*three) for three in zip(layers, found, maps, strict=True)]
    return found


def shared_memory(model: nn.Module) -> dict[str, str]:
    """Each parameter and buffer that shares its memory with another, and the path of that one."""
    owners: dict[int, list[str]] = defaultdict(list)
    for path, module in model.named_modules():
        for name, value in tensors_of(module):
            if value.numel() and not value.is_meta:
                owners[value.untyped_storage().data_ptr()].append(f"{path}.{name}".lstrip("."))
    return {
        path: next(p for p in paths if p != path)
        for paths in owners.values()
        if len(paths) > 1
        for path in paths
    }


class ReasonToStay(Exception):
    """Why a batch norm stays where it is."""


class Planner:
    """Decides for each batch norm of the model, in the order of the graph.

    ndim: the number of dimensions of each batch norm's input where it is known. options: the batch norms that are
    called with more than their input. shared: tensors with the one in whose memory they are (`shared_memory`).
    Results: `sites`, and `reasons` by path.
    """

    def __init__(
        self, model: nn.Module, graph: Graph, ndim: dict[str, int], options: set[str], shared: dict[str, str]
    ) -> None:
        self.model, self.graph, self.ndim, self.options, self.shared = model, graph, ndim, options, shared
        self.sites: list[Site] = []
        self.reasons: dict[str, str] = {}
        self.passed: set[fx.Node] = set()  # calls of folded batch norms whose output is their input
        self.calls = Counter(path for path, _ in graph.norm_calls())

    def plan(self) -> None:
        """Fills `sites` and `reasons`."""
        for path, module in self.model.named_modules():
            if is_norm(module) and not self.calls[path]:
                self.reasons[path] = f"the model's graph ({self.graph.how}) has no call of it"
        for path, node in self.graph.norm_calls():
            try:
                self._check_norm(path)
                self._place(path, node)
            except ReasonToStay as reason:
                self.reasons[path] = str(reason)

    def _check_norm(self, path: str) -> None:
        norm = self.model.get_submodule(path)
        if not is_norm(norm):
            raise ReasonToStay("torch.nn.functional.batch_norm is called with its buffers")
        if self.calls[path] > 1:
            raise ReasonToStay(f"it is called {self.calls[path]} times")
        why = reason_against(norm)
        if why is not None:
            raise ReasonToStay(why)
        self._check_hooks(path)
        if self.graph.how == "torch.fx" and any(
            self.graph.uses[f"{path}.{name}".lstrip(".")] for name, _ in tensors_of(norm)
        ):
            raise ReasonToStay("its parameters or statistics are used elsewhere")

    def _place(self, path: str, node: fx.Node) -> None:
        try:
            site = self._behind(path, node)
        except ReasonToStay as reason:
            try:
                site = self._ahead(path, node)
            except ReasonToStay as other:
                raise ReasonToStay(f"{reason}, {other}") from None
        if site not in self.sites:
            self.sites.append(site)
        if self._is_plain(path):
            self.passed.add(node)

    def _is_plain(self, path: str) -> bool:
        """Whether nothing but the affine map happens in this batch norm."""
        norm = self.model.get_submodule(path)
        return path not in self.options and type(remainder(norm)) is nn.Identity

    # ------------------------------------------------------------------------------- into the layers before it

    def _behind(self, path: str, node: fx.Node) -> Site:
        """The site of the layers whose output this batch norm takes. Raises ReasonToStay."""
        ndim = self.ndim.get(path)
        producers = self._producers(self.graph.input_of(node), ndim)
        into = tuple(self._layer_at(p, ndim) for p in producers)
        channels = sum(len(parameters(self.model.get_submodule(p)).bias) for p in into)
        if channels != len(affine(self.model.get_submodule(path)).scale):
            raise ReasonToStay(f"{_listed(into)} has {channels} output channels")
        site = self._site_of(into)
        site.after.append(path)
        return site

    def _producers(self, value: Any, ndim: int | None) -> list[fx.Node]:
        """The convolutions, linear layers and batch norms whose outputs, side by side, this value is."""
        if not isinstance(value, fx.Node):
            raise ReasonToStay("its input is no value of the graph")
        if (
            value in self.passed
            or self.graph.is_same(value)
            or (ndim == 2 and self.graph.is_flatten(value, (0, 1)))
        ):
            self._check_single(value)
            return self._producers(self.graph.input_of(value), ndim)
        parts = self.graph.parts_of_cat(value, ndim) if ndim else None
        found = [value] if parts is None else [p for part in parts for p in self._producers(part, ndim)]
        if parts is None and self.graph.product_at(value) is None and self.graph.norm_at(value) is None:
            raise ReasonToStay(f"its input is {self.graph.described(value)}")
        self._check_single(value)
        return found

    def _check_single(self, value: fx.Node) -> None:
        count = len(self.graph.readers[value])
        if count != 1:
            raise ReasonToStay(f"{self.graph.described(value)} is used {count} times")

    def _layer_at(self, node: fx.Node, ndim: int | None) -> str:
        """The path of the layer at this node, if its weights can change. ndim: of its output."""
        norm = self.graph.norm_at(node)
        if norm is None:
            path = self._product_path(node)
            layer = self.model.get_submodule(path)
            self._check_ndim(layer, ndim)
        else:
            path = norm
            self._check_norm(path)
            if not (self._is_plain(path) and isinstance(self.model.get_submodule(path), _BatchNorm)):
                raise ReasonToStay(f"its input is {self.graph.described(node)}")
        self._check_hooks(path)
        for name, _ in tensors_of(self.model.get_submodule(path)):
            tensor = f"{path}.{name}".lstrip(".")
            if tensor in self.shared:
                raise ReasonToStay(f"{tensor} shares its memory with {self.shared[tensor]}")
        return path

    def _product_path(self, node: fx.Node) -> str:
        product = self.graph.product_at(node)
        assert product is not None
        if product.weight is None or (product.has_bias and product.bias is None):
            raise ReasonToStay("the weight of the layer beside it is computed in each forward")
        path, _, name = product.weight.rpartition(".")
        layer: Any = self.model.get_submodule(path)
        bias = f"{path}.bias".lstrip(".") if product.has_bias else None
        known = isinstance(layer, _ConvNd | nn.Linear) and name == "weight" and product.bias == bias
        if not (known and product.has_bias is (layer.bias is not None) and layer.weight.is_floating_point()):
            raise ReasonToStay(f"{path!r} does not compute with its own real weight and bias")
        uses = self.graph.uses[product.weight]
        if uses > 1:
            raise ReasonToStay(f"{product.weight} is used {uses} times")
        return path

    @staticmethod
    def _check_ndim(layer: Any, ndim: int | None) -> None:
        if isinstance(layer, nn.Linear) and ndim not in (None, 2):
            raise ReasonToStay(
                f"its channels are dimension 1 of {ndim}, and those of the linear layer are the last"
            )
        if isinstance(layer, _ConvNd) and ndim not in (None, 2 + len(layer.kernel_size)):
            raise ReasonToStay("the convolution's output has no dimension of samples")

    def _check_hooks(self, path: str) -> None:
        names = path.split(".")
        for k in range(1, len(names) + 1):
            if hooked(self.model.get_submodule(".".join(names[:k]))):
                raise ReasonToStay(f"{'.'.join(names[:k])!r} has hooks, or a forward of its own")

    def _site_of(self, into: tuple[str, ...]) -> Site:
        """The site of these layers: a new one, or the one that they have together already."""
        for site in self.sites:
            if site.into == into:
                return site
            if set(site.into) & set(into):
                raise ReasonToStay(f"{_listed(site.into)} has taken up {_listed(tuple(site.norms))}")
        return Site(into)

    # --------------------------------------------------------------------------------- into the layer behind it

    def _ahead(self, path: str, node: fx.Node) -> Site:
        """The site of the layer that takes this batch norm's output. Raises ReasonToStay."""
        if not self._is_plain(path):
            raise ReasonToStay("and more than its affine map is in it")
        value, flat = node, False
        while True:
            readers = self.graph.readers[value]
            if len(readers) != 1:
                raise ReasonToStay(f"and its output is used {len(readers)} times")
            user = readers[0]
            if self.graph.product_at(user) is not None and self.graph.input_of(user) is value:
                break
            if not (self.graph.is_same(user) or self.graph.is_flatten(user)):
                raise ReasonToStay(f"and its output goes to {self.graph.called(user)}")
            value, flat = user, flat or self.graph.is_flatten(user)
        into = self._layer_at(user, None)
        border = self._has_border(path, into, user, flat)
        site = self._site_of((into,))
        site.border = border
        site.before.insert(0, path)
        return site

    def _has_border(self, path: str, into: str, user: fx.Node, flat: bool) -> bool:
        """Whether the layer's padding has to take part. Raises ReasonToStay if the map can't go through the layer."""
        layer: Any = self.model.get_submodule(into)
        f, ndim = affine(self.model.get_submodule(path)), self.ndim.get(path)
        if isinstance(layer, nn.Linear):
            if not (flat or ndim == 2) or layer.in_features % len(f.scale):
                raise ReasonToStay(f"and its channels are not those of the linear layer {into!r}")
        elif flat or layer.in_channels != len(f.scale) or ndim not in (None, 2 + len(layer.kernel_size)):
            raise ReasonToStay(f"and its channels are not those of {into!r}")
        if not bool(f.shift.any()):
            return False
        if isinstance(layer, _ConvTransposeNd):
            raise ReasonToStay(f"and its shift is no constant behind the transposed convolution {into!r}")
        if not self.graph.pads_with_zeros(user):
            return False
        border = (f.shift / f.scale).to(layer.weight.dtype)
        if type(layer) not in (nn.Conv1d, nn.Conv2d, nn.Conv3d) or not bool(border.isfinite().all()):
            raise ReasonToStay(f"and {into!r} pads its output with zeros, which its shift would not reach")
        return True


def _listed(paths: tuple[str, ...]) -> str:
    return ", ".join(map(repr, paths))
