"""Batch norms folded into the layers beside them, in a copy of the model that is verified before it is returned.

`norms` has what one batch norm is, `graph` how a model is read, `sites` what goes where, `weights` the arithmetic,
`verify` the comparison, `trial` what is kept of it, and `frozen` the fold that is made anew in each training step.
"""

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor, nn

from xhat.errors import ArgumentError
from xhat.torch.convert.layers import class_name
from xhat.torch.errors import first_line
from xhat.torch.fold.frozen import make_frozen, reason_to_leave, unfold_frozen
from xhat.torch.fold.graph import Inputs
from xhat.torch.fold.norms import is_norm
from xhat.torch.fold.parts import Parts
from xhat.torch.fold.sites import shared_memory
from xhat.torch.fold.trial import Trial, sites_of
from xhat.torch.fold.weights import gain, parameters
from xhat.torch.inputs import check_known
from xhat.torch.internals import uncompiled

__all__ = ["Folded", "fold", "fold_frozen", "unfold"]

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class Folded:
    """What `fold` did with one batch norm of a model.

    Print it for a line of text.

    Attributes
    ----------
    path : str
        The layer's path in the model.
    before : str
        Its class.
    into : tuple of str
        The paths of the layers that took it up; empty if it was left.
    reason : str or None
        Why it was left.
    gain : float
        The largest ``|y - bias|`` of a channel of these layers, folded, for ``|x| <= 1``.
    bound : float
        How far the rounding of their weights moves y at most: ``ulp (gain max|x| + |bias|)``, with x of the examples.
    error : float
        The largest ``|y - y in float64|`` on the examples, with the layers' inputs as they are.
    unfolded : float
        The same without the fold.
    values : float
        The largest ``|y|``.
    also : tuple of str
        The layer's other paths if it is registered more than once.
    parts : object or None
        What was taken out of the model, which `unfold` puts back.

    Examples
    --------
    >>> import torch
    >>> import xhat.torch as xt
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)).eval()
    >>> small, changes = xt.fold(model, torch.ones(1, 2))
    >>> changes[0].path, changes[0].into, changes[0].folded
    ('1', ('0',), True)
    """

    path: str
    before: str
    into: tuple[str, ...] = ()
    reason: str | None = None
    gain: float = 0.0
    bound: float = 0.0
    error: float = 0.0
    unfolded: float = 0.0
    values: float = 0.0
    also: tuple[str, ...] = ()
    parts: Parts | None = field(default=None, repr=False, compare=False)

    @property
    def folded(self) -> bool:
        """Whether the layer's affine map is in other layers now."""
        return bool(self.into)

    def __str__(self) -> str:
        where = f"{self.path or '(the model)'}{''.join(f' = {path}' for path in self.also)}: {self.before}"
        if not self.into:
            return f"{where}, left as it is ({self.reason})"
        if self.parts is None:
            return f"{where} -> {', '.join(self.into)}"
        numbers = f"gain {self.gain:.3g}, bound {self.bound:.2g}, error {self.error:.2g}, unfolded {self.unfolded:.2g}"
        return f"{where} -> {', '.join(self.into)} ({numbers}, values up to {self.values:.3g})"


def fold(model: M, example_inputs: Any, *, batches: Iterable[Any] | None = None) -> tuple[M, list[Folded]]:
    """Fold the batch norms of a model into the layers beside them, in a copy that is verified.

    ::

        y = gamma rstd (W x + b - mu) + beta
          = (gamma rstd W) x + gamma rstd (b - mu) + beta

    Parameters
    ----------
    model : torch.nn.Module
        The model, with batch norms in evaluation or frozen. It is not changed.
    example_inputs : torch.Tensor, tuple or dict
        An input of the model, a tuple of arguments, or a dict of keyword arguments.
    batches : iterable, optional
        More inputs, which are used for the verification. If ``example_inputs`` is a tensor, the first element of a
        batch that is a tuple or list.

    Returns
    -------
    model : torch.nn.Module
        The copy.
    changes : list of Folded
        What became of each batch norm. Print them.

    Raises
    ------
    ArgumentError
        If ``model`` is not a module, can't be copied, or does not run with these inputs.

    See Also
    --------
    unfold : Give the batch norms back.
    fold_frozen : Fold anew in each training step.

    Notes
    -----
    A batch norm with fixed statistics (in evaluation, or frozen) goes into the convolution (1-d to 3-d, grouped,
    transposed), the linear layer over (N, C) or the batch norm before it, through dropout in evaluation, identity and
    concatenation; or else into the convolution or linear layer behind it. Its place is taken by `torch.nn.Identity`,
    by the activation that was part of it, or by a padding whose value the folded map takes to zero. Other modules,
    classes, paths and names of parameters stay, so that the copy can be saved, exported and traced like the model: the
    graph (by torch.fx; by torch.export, with these inputs, where that fails) is only read. A layer stays where
    anything else uses its weight or its output, and where weights are shared, parametrized or hooked;
    ``Folded.reason`` has the reason.

    Weights are computed in float64 and rounded once. The copy has been verified: with unrounded weights in float64,
    each folded layer gives the numbers of the unfolded ones on the same inputs, and the models' outputs agree;
    rounded, the errors stand in the result. A fold that fails is undone, with what was found as the reason.

    Examples
    --------
    >>> import torch
    >>> import xhat.torch as xt
    >>> _ = torch.manual_seed(0)
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU()).eval()
    >>> small, changes = xt.fold(model, torch.randn(1, 1, 4, 4))
    >>> print(changes[0])  # doctest: +ELLIPSIS
    1: torch.nn.BatchNorm2d -> 0 (gain ..., bound ..., error ...)
    >>> x = torch.randn(2, 1, 5, 5)
    >>> torch.allclose(small(x), model(x), atol=1e-6)
    True
    """
    inputs = [
        _inputs("fold", example_inputs, None),
        *(_inputs("fold", b, example_inputs) for b in batches or ()),
    ]
    original = unfold_frozen(_copied("fold", model))
    with uncompiled():
        sites, reasons, options = sites_of(original, inputs[0], shared_memory(model))
        trial = Trial(original, sites, options, inputs)
        trial.run()
    found = {path: _numbers(trial, k) for k, site in enumerate(trial.sites) for path in site.norms}
    folded: Any = trial.folded
    return folded, _changes(original, reasons | trial.reasons, found)


def fold_frozen(model: M, *, example_inputs: Any = None) -> tuple[M, list[Folded]]:
    """Make frozen batch norms part of the weights of the layers before them, in place, for training.

    ::

        y = (gamma rstd W) x + gamma rstd (b - mu) + beta

    Each forward pass computes these weights from W, b, gamma and beta, so that all four have their exact gradients, and
    neither the batch norm's pass over memory nor its saved input is needed.

    Parameters
    ----------
    model : torch.nn.Module
        The model. It is changed in place. A batch norm is taken that has fixed statistics now (`freeze`, or
        ``.eval()`` of the layer), and that `fold` would put into the one convolution or linear layer of torch.nn
        before it.
    example_inputs : torch.Tensor, tuple or dict, optional
        As for `fold`. They are needed only where torch.fx can't trace the model.

    Returns
    -------
    model : torch.nn.Module
        The model itself. ``xt.unfold(model)`` undoes the fold.
    changes : list of Folded
        What became of each batch norm, without numbers.

    Raises
    ------
    ArgumentError
        If ``model`` is not a module or can't be copied.

    Notes
    -----
    Parameters, buffers and state dict stay as they are; the two layers change their class. Where the batch norm has no
    fixed statistics any more, such as after ``.train()`` of a layer that is not frozen, both layers compute what they
    always did.

    References
    ----------
    You et al., "Tune-Mode ConvBN Blocks For Efficient Transfer Learning", 2023.

    Examples
    --------
    >>> import torch
    >>> import xhat.torch as xt
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2))
    >>> model, _ = xt.convert(model)
    >>> model, changes = xt.fold_frozen(xt.freeze(model, affine=False))
    >>> print(changes[0])
    1: xhat.torch.BatchNorm2d -> 0
    """
    inputs = None if example_inputs is None else _inputs("fold_frozen", example_inputs, None)
    plain = unfold_frozen(_copied("fold_frozen", model))
    sites, reasons, _ = sites_of(plain, inputs, shared_memory(unfold_frozen(model)))
    taken = {}
    for site in sites:
        why = reason_to_leave(model, site)
        if why is None:
            taken[site.after[0]] = {"into": site.into}
        else:
            reasons |= dict.fromkeys(site.norms, why)
    changes = _changes(model, reasons, taken)
    for site in sites:
        if site.norms[0] in taken:
            make_frozen(model, site)
    return model, changes


def _copied(operation: str, model: M) -> M:
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"{operation}: model is {type(model).__name__}, expected a torch.nn.Module.")
    check_known(operation, {path: m for path, m in model.named_modules() if is_norm(m)})
    computed = (
        v for m in model.modules() for v in vars(m).values() if isinstance(v, Tensor) and not v.is_leaf
    )
    try:
        # A weight that a hook has computed (pruning, weight_norm) refuses to be copied; the next forward computes it.
        return copy.deepcopy(model, {id(value): value.detach().clone() for value in computed})
    except Exception as error:
        raise ArgumentError(f"{operation}: the model can't be copied ({first_line(error)}).") from error


def _changes(model: nn.Module, reasons: dict[str, str], found: dict[str, dict[str, Any]]) -> list[Folded]:
    """One entry for each batch norm, in the order of the model."""
    paths: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        paths.setdefault(id(module), []).append(path)
    return [
        Folded(
            path,
            class_name(module),
            also=tuple(paths[id(module)][1:]),
            **found.get(path, {"reason": reasons.get(path)}),
        )
        for path, module in model.named_modules()
        if is_norm(module) or path in reasons
    ]


def _numbers(trial: Trial, k: int) -> dict[str, Any]:
    """The fields of `Folded` for the batch norms of a site."""
    site, measured = trial.sites[k], trial.measured[k]
    layers = [trial.folded.get_submodule(p) for p in site.into]
    return {
        "into": site.into,
        "gain": max(float(gain(layer, parameters(layer)).max()) for layer in layers),
        "bound": trial.bound_of(k),
        "error": measured.error,
        "unfolded": measured.unfolded,
        "values": measured.values,
        "parts": trial.parts[k],
    }


def unfold(model: M, changes: Iterable[Folded] = ()) -> M:
    """Give the batch norms back to a folded model, in place, bit for bit, and the layers their weights.

    Parameters
    ----------
    model : torch.nn.Module
        A model that `fold` or `fold_frozen` returned.
    changes : iterable of Folded, optional
        What `fold` returned; they hold these parts. A model of `fold_frozen` needs none.

    Returns
    -------
    torch.nn.Module
        The model itself.

    Raises
    ------
    ArgumentError
        If the changes are another model's, or if a folded weight has been changed since, which would be lost. Then
        nothing has changed.

    Examples
    --------
    >>> import torch
    >>> import xhat.torch as xt
    >>> model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3)).eval()
    >>> small, changes = xt.fold(model, torch.ones(1, 2))
    >>> small[1]
    Identity()
    >>> type(xt.unfold(small, changes)[1]).__name__
    'BatchNorm1d'
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"unfold: model is {type(model).__name__}, expected a torch.nn.Module.")
    every = {id(change.parts): change.parts for change in changes if change.parts is not None}
    for parts in every.values():
        parts.check(model)
    for parts in every.values():
        parts.give_back(model)
    return unfold_frozen(model)


def _inputs(operation: str, given: Any, example: Any) -> Inputs:
    if isinstance(example, Tensor) and isinstance(given, list | tuple) and given:
        given = given[0]
    if isinstance(given, dict):
        return Inputs((), given)
    if isinstance(given, list | tuple):
        return Inputs(tuple(given), {})
    if not isinstance(given, Tensor):
        raise ArgumentError(
            f"{operation}: an input is {type(given).__name__}, expected a tensor, a tuple of arguments or a dict of "
            "keyword arguments."
        )
    return Inputs((given,), {})
