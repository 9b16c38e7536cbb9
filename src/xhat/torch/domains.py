"""A batch norm for each domain of the samples: separate statistics, with separate or shared parameters.

The layers are children, so that what is done with the batch norms of a model (convert, freeze, recalibrate, average)
is done with them. What they compute must never live here.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from xhat.errors import ArgumentError
from xhat.torch.errors import TensorArgumentError, TensorShapeError, TensorTypeError

__all__ = ["DomainBatchNorm"]


class DomainBatchNorm(nn.Module):
    """One batch norm for each domain of the samples.

    The samples with label k go through layer k. Domains are data sets, views, clean and adversarial samples, or
    classes::

        y[labels == k] = layers[k](x[labels == k])

    Parameters
    ----------
    layer : torch.nn.Module
        A batch norm of any kind, torch's or xhat's. Every domain gets a copy of it.
    domains : int
        The number of domains.
    shared : bool, default False
        Whether weight and bias are the same for all domains; the statistics never are.

    Attributes
    ----------
    layers : torch.nn.ModuleList
        The batch norm of each domain.

    Raises
    ------
    ArgumentError
        If the layer is no batch norm, or unless domains is an int of at least 1.

    Notes
    -----
    The batch is sorted by label once, each layer takes a slice of it, and the results are put back in order. A domain
    without samples is left as it is.

    References
    ----------
    Chang et al., "Domain-Specific Batch Normalization for Unsupervised Domain Adaptation", 2019.

    Examples
    --------
    >>> import torch
    >>> import xhat.torch as xt
    >>> norm = xt.DomainBatchNorm(xt.BatchNorm1d(1), domains=2)
    >>> x = torch.tensor([[1.0], [10.0], [3.0], [30.0]])
    >>> labels = torch.tensor([0, 1, 0, 1])
    >>> norm(x, labels).flatten().detach().round(decimals=3)
    tensor([-1., -1.,  1.,  1.])
    >>> norm.layers[1].running_mean
    tensor([2.])
    """

    def __init__(self, layer: nn.Module, domains: int, *, shared: bool = False) -> None:
        super().__init__()
        if not isinstance(layer, _BatchNorm):
            raise ArgumentError(f"DomainBatchNorm: layer is {type(layer).__name__}, expected a batch norm.")
        if type(domains) is not int or domains < 1:
            raise ArgumentError(f"DomainBatchNorm: domains is {domains!r}, expected an int of at least 1.")
        self.layers = nn.ModuleList(copy.deepcopy(layer) for _ in range(domains))
        if shared:
            for other in self.layers[1:]:
                other.weight, other.bias = self.layers[0].weight, self.layers[0].bias

    def forward(self, input: Tensor, labels: Tensor | int, **options: Tensor | None) -> Tensor:
        """Normalize each sample by the layer of its domain.

        Parameters
        ----------
        input : torch.Tensor
            The batch (N, C, ...).
        labels : torch.Tensor or int
            Integers (N,) from 0 to domains - 1; for a batch of one domain, an int.
        **options : torch.Tensor
            ``residual`` and ``mask``, which are passed on to xhat's layers.

        Returns
        -------
        torch.Tensor
            The result y, in the order of the input.

        Raises
        ------
        TensorArgumentError, TensorShapeError, TensorTypeError
            If the labels are not such integers; these are an ArgumentError, a ShapeError and an ArgumentError.

        Notes
        -----
        The layers raise what they always do, with the domain in their path.

        Examples
        --------
        >>> import torch
        >>> import xhat.torch as xt
        >>> norm = xt.DomainBatchNorm(xt.BatchNorm1d(1), domains=2)
        >>> y = norm(torch.tensor([[1.0], [3.0]]), 1)
        >>> norm.layers[0].running_mean, norm.layers[1].running_mean
        (tensor([0.]), tensor([0.2000]))
        """
        if isinstance(labels, int) and 0 <= labels < len(self.layers):
            y: Tensor = self.layers[labels](input, **options)
            return y
        sizes = _sizes(labels, len(input), len(self.layers))
        assert isinstance(labels, Tensor)
        order = torch.argsort(labels, stable=True).to(input.device)
        whole = {name: _rows(value, len(input)) for name, value in options.items() if value is not None}
        sorted_ = {name: value.index_select(0, order).split(sizes) for name, value in whole.items()}
        ys, xs = [], input.index_select(0, order).split(sizes)
        for k, layer in enumerate(self.layers):
            if sizes[k]:
                ys.append(layer(xs[k], **{name: parts[k] for name, parts in sorted_.items()}))
        return torch.cat(ys).index_select(0, torch.argsort(order)) if ys else input.clone()


def _rows(value: Tensor, n: int) -> Tensor:
    """A tensor with a row for each sample; a mask may have one for all."""
    return value if len(value) == n else value.expand(n, *value.shape[1:])


def _sizes(labels: Any, n: int, domains: int) -> list[int]:
    """The number of samples of each domain. Raises for labels that are none."""
    if not isinstance(labels, Tensor) or labels.is_floating_point() or labels.dtype == torch.bool:
        got = labels.dtype if isinstance(labels, Tensor) else repr(labels)
        raise TensorTypeError(
            f"DomainBatchNorm: labels are {got}, expected a tensor of integers, or one int from 0 to {domains - 1}."
        )
    if labels.shape != (n,):
        raise TensorShapeError(
            f"DomainBatchNorm: labels have shape {tuple(labels.shape)}, expected ({n},), one for each sample."
        )
    if n and not (int(labels.min()) >= 0 and int(labels.max()) < domains):
        raise TensorArgumentError(
            f"DomainBatchNorm: labels are from {int(labels.min())} to {int(labels.max())}, expected 0 to {domains - 1}."
        )
    sizes: list[int] = torch.bincount(labels, minlength=domains).tolist()
    return sizes
