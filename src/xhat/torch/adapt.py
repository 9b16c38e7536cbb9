"""Evaluation by statistics that are adapted to the test batches, which differ from the training data.

The layers' running statistics stay as they are; what they evaluate by is made here, and nothing is normalized here.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from xhat import equations
from xhat.checks import number
from xhat.errors import ArgumentError
from xhat.torch import composed
from xhat.torch.engines import engine_for
from xhat.torch.freeze import layers_of
from xhat.torch.inputs import CODES, Batch, Inputs
from xhat.torch.internals import eager
from xhat.torch.nn import BatchNorm
from xhat.torch.running_stats import Following

__all__ = ["Adaptation", "adapt"]

MODES = ("blend", "pooled", "exponential")


def adapt(model: nn.Module, mode: str = "blend", *, prior: float = 16, momentum: float = 0.1) -> "Adaptation":
    """Adapt the batch norms of a model to the batches that it is tested on.

    They evaluate by statistics that are merged with those of the test batches::

        n   = na + nb
        mu  = (na mu_a + nb mu_b) / n
        var = (na var_a + nb var_b) / n + na nb (mu_a - mu_b)^2 / n^2

    b is the test batch, of nb samples, and a is what the mode says.

    Parameters
    ----------
    model : torch.nn.Module
        A model with batch norms of xhat's. Those in evaluation adapt; in training mode, they are as before. Layers with
        frozen statistics, and the running statistics of all layers, stay as they are.
    mode : {"blend", "pooled", "exponential"}, default "blend"
        ``"blend"``
            a are the running statistics, which count as many samples as ``prior``.
        ``"pooled"``
            a are the running statistics, in the same way, merged with all test batches so far.
        ``"exponential"``
            a is what the last batch was evaluated by, at first the running statistics; na = 1 - momentum, nb =
            momentum.
    prior : float, default 16
        How many samples the running statistics count as, at least 0.
    momentum : float, default 0.1
        The weight of the test batch in mode "exponential", from 0 to 1.

    Returns
    -------
    Adaptation
        The adapted layers: reset() forgets all batches, remove() makes the layers evaluate as before, and so does the
        end of a with statement.

    Raises
    ------
    ArgumentError
        If mode, prior or momentum has no valid value, if the model has no batch norm of xhat's whose statistics may
        move, and if it is adapted already.

    Notes
    -----
    Gradients flow through the statistics of the batch, as in training, and to weight and bias. A mask weighs the
    batch's statistics.

    References
    ----------
    Schneider et al., "Improving robustness against common corruptions by covariate shift adaptation", 2020 (with a
    prior); Wang et al., "Tent: Fully Test-Time Adaptation by Entropy Minimization", 2021. They average variances; here
    the variance between the means is added, as in the moments of both together.

    Examples
    --------
    >>> import torch
    >>> import xhat.torch as xt
    >>> model = xt.BatchNorm1d(1).eval()
    >>> x = torch.tensor([[1.0], [3.0]])
    >>> with xt.adapt(model, prior=2):
    ...     model(x).flatten().detach()
    tensor([0.0000, 1.4142])
    >>> model(x).flatten().detach()
    tensor([1.0000, 3.0000])
    """
    if mode not in MODES:
        raise ArgumentError(f"adapt: mode is {mode!r}, expected one of {', '.join(map(repr, MODES))}.")
    if not 0 <= number(prior) < math.inf:
        raise ArgumentError(f"adapt: prior is {prior!r}, expected a number of samples, at least 0.")
    if not 0 <= number(momentum) <= 1:
        raise ArgumentError(f"adapt: momentum is {momentum!r}, expected a number from 0 to 1.")
    layers = [
        (path, m)
        for path, m in layers_of(model, "adapt")
        if not m.frozen_statistics and m.running_mean is not None
    ]
    if not layers:
        raise ArgumentError("adapt: the model has no batch norm whose running statistics may move.")
    twice = next((path for path, m in layers if "_normalized" in vars(m)), None)
    if twice is not None:
        raise ArgumentError(
            f"adapt: layer {twice!r} is adapted already. Call remove() of that adaptation first."
        )
    return Adaptation([_Adapted(m, mode, float(prior), float(momentum)) for _, m in layers])


class Adaptation:
    """The adapted layers of a model, as `adapt` returns them.

    As a context manager, it calls `remove` at the end of the with statement.

    Examples
    --------
    >>> import torch
    >>> import xhat.torch as xt
    >>> model = xt.BatchNorm1d(1).eval()
    >>> adaptation = xt.adapt(model, "pooled", prior=0)
    >>> model(torch.tensor([[1.0], [3.0]])).flatten().detach().round(decimals=3)
    tensor([-1.,  1.])
    >>> len(list(adaptation.parameters()))
    2
    >>> adaptation.remove()
    """

    def __init__(self, adapted: list["_Adapted"]) -> None:
        self._adapted = adapted
        for each in adapted:
            vars(each.layer)["_normalized"] = each.normalized

    def reset(self) -> None:
        """Forget all test batches."""
        for each in self._adapted:
            each.state = None

    def remove(self) -> None:
        """Make the layers evaluate by their running statistics again."""
        for each in self._adapted:
            vars(each.layer).pop("_normalized", None)

    def parameters(self) -> Iterator[nn.Parameter]:
        """Iterate over the weights and biases of the adapted layers, but not frozen ones: what Tent trains.

        Yields
        ------
        torch.nn.Parameter
            A weight or a bias.
        """
        for each in self._adapted:
            if not each.layer.frozen_affine:
                yield from each.layer.parameters(recurse=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()


class _State(NamedTuple):
    """Statistics, and how many samples they count."""

    n: float
    mean: Tensor
    var: Tensor


class _Adapted:
    """One layer, and what it evaluates by."""

    def __init__(self, layer: BatchNorm, mode: str, prior: float, momentum: float) -> None:
        self.layer, self.mode, self.prior, self.momentum = layer, mode, prior, momentum
        self.state: _State | None = None
        self.before = layer._normalized

    def normalized(
        self, t: Inputs, eps: Any, correction: Any, activation: Any, following: Following | None = None
    ) -> tuple[Tensor, Batch | None]:
        """Takes the place of the layer's `_normalized`."""
        if t.mean is None or t.var is None or not t.x.numel():  # in training, or nothing to adapt to
            return self.before(t, eps, correction, activation, following)
        mean, var = _moments(t)
        old = self.state or _State(self.prior, t.mean.to(mean.dtype), t.var.to(mean.dtype))
        na, nb = old.n, float(len(t.x))
        if self.mode == "exponential":
            na, nb = 1 - self.momentum, self.momentum
        n, mean, m2 = equations.merge(na, old.mean, na * old.var, nb, mean, nb * var)
        var = equations.variance(m2, n)
        if self.mode != "blend":
            self.state = _State(n, mean.detach(), var.detach())
        return self.before(t._replace(mean=mean, var=var, mask=None), eps, correction, activation)


def _moments(t: Inputs) -> tuple[Tensor, Tensor]:
    """Mean and variance of the batch; differentiable where x is."""
    constant = not (torch.is_grad_enabled() and t.x.requires_grad)
    engine = engine_for(t.x, t.mask) if constant and eager() and t.x.dtype in CODES else None
    m, _, (mean, m2) = (engine or composed).moments(t.x, t.mask)
    return mean, equations.variance(m2, m)
