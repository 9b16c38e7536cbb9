"""Batch renormalization: a batch norm whose training follows its evaluation, for small or dependent batches.

It is a batch norm with another weight and bias in each call; no formula of batch normalization lives here.
"""

import math
from collections import deque
from typing import Any, Self

import torch
from torch import Tensor, nn

from xhat import equations
from xhat.errors import ArgumentError
from xhat.torch.engines import engine_for
from xhat.torch.functional import normalized
from xhat.torch.inputs import Batch, Inputs
from xhat.torch.internals import eager, recomputing, tracing, transforming
from xhat.torch.nn import BatchNorm
from xhat.torch.running_stats import Following, Running

__all__ = ["BatchRenorm", "BatchRenorm1d", "BatchRenorm2d", "BatchRenorm3d"]

REMEMBERED = 64  # forward passes whose r and d an activation checkpoint may need


class BatchRenorm(BatchNorm):
    """What the layers share; use `BatchRenorm1d`, `BatchRenorm2d` or `BatchRenorm3d`.

    ::

        y = act(weight (xhat r + d) + bias [+ residual])
        xhat = (x - mu) / sigma, by the batch
        sigma = sqrt(var + eps)     sigma_run = sqrt(running_var + eps)
        r = clip(sigma / sigma_run, 1 / rmax, rmax)
        d = clip((mu - running_mean) / sigma_run, -dmax, dmax)

    In training, r and d are constants of the batch and have no gradient: this is a batch norm with the weight ``weight
    r`` and the bias ``bias + weight d``. As long as nothing is clipped, y is what the layer computes in evaluation,
    ``(x - running_mean) / sigma_run``, with the gradients of a batch norm. Evaluation, masks, residuals, activations
    and the other options are those of `BatchNorm`.

    Parameters
    ----------
    num_features : int
        The number of channels C.
    eps : float, default 1e-5
        Added to the variance inside the square root.
    momentum : float or None, default 0.01
        The weight of a new batch in the running statistics; None for their plain average over the batches.
    affine : bool, default True
        Whether the layer has a weight and a bias.
    track_running_stats : bool, default True
        Whether the layer has running statistics. r and d need them, so False raises.
    rmax : float, default 3.0
        The bound of r, at least 1.
    dmax : float, default 5.0
        The bound of d, at least 0. With rmax=1 and dmax=0 the layer is a batch norm.
    warmup : (int, int), default (5000, 40000)
        (a, b): r = 1 and d = 0 for the first a steps, then the bounds grow linearly, up to rmax and dmax from step b
        on.
    device : torch.device, optional
        The device of parameters and buffers.
    dtype : torch.dtype, optional
        The dtype of parameters and buffers. Running statistics are float32 or wider whatever it is.
    bias : bool, default True
        Whether there is a bias beside the weight, in versions of torch whose layer has this argument.
    correction : {0, 1}, default 0
        The variance of the batch is ``m2 / (m - correction)``; 0 is torch's convention.
    running_correction : {0, 1}, default 1
        The same for running_var; 1 is torch's convention.
    activation : {None, "relu", "silu"} or ("leaky_relu", slope), optional
        An activation that is applied last and kept out of memory.
    nonfinite : {"propagate", "skip", "raise"}, default "propagate"
        What a batch with NaN, infinity or a variance that overflows does to the running statistics: it moves them, as
        in torch; its channels stay as they are and the buffer ``skipped`` counts them; or the call raises.

    Raises
    ------
    ArgumentError
        If the bounds or the warm-up have other values, without running statistics, or if an option has no valid value.
    ShapeError, DtypeError, DegenerateBatchError
        As `BatchNorm` does.

    Notes
    -----
    The buffer ``steps`` counts the batches that have moved the running statistics. A state dict without it has
    num_batches_tracked in its place.

    The statistics are those of torch's layers: the average of variances, not of deviations as in the paper, and by
    default with m - 1; running_correction=0 has m. A forward pass that activation checkpointing repeats has the r and
    d of the first one; the last 64 are kept. `recalibrate` records batches without r and d.

    References
    ----------
    Ioffe, "Batch Renormalization: Towards Reducing Minibatch Dependence in Batch-Normalized Models", 2017, algorithm 1.

    Examples
    --------
    After the warm-up, training gives what evaluation would give, unless r or d is clipped:

    >>> import torch
    >>> import xhat.torch as xt
    >>> layer = xt.BatchRenorm1d(1, warmup=(0, 0))
    >>> x = torch.tensor([[1.0], [2.0], [6.0]])
    >>> layer(x).flatten().detach().round(decimals=3)
    tensor([1., 2., 6.])
    """

    steps: Tensor

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-5,
        momentum: float | None = 0.01,
        affine: bool = True,
        track_running_stats: bool = True,
        *,
        rmax: float = 3.0,
        dmax: float = 5.0,
        warmup: tuple[int, int] = (5000, 40000),
        **options: Any,
    ) -> None:
        if not track_running_stats:
            raise ArgumentError(
                f"{type(self).__name__}: track_running_stats is False, expected True: r and d need running statistics."
            )
        if not (rmax >= 1 and dmax >= 0):
            raise ArgumentError(
                f"{type(self).__name__}: rmax is {rmax!r} and dmax is {dmax!r}, expected rmax >= 1 and dmax >= 0."
            )
        first, full = warmup
        if not 0 <= first <= full < math.inf:
            raise ArgumentError(
                f"{type(self).__name__}: warmup is {warmup!r}, expected (a, b), numbers of steps with 0 <= a <= b."
            )
        super().__init__(num_features, eps, momentum, affine, track_running_stats, **options)
        self.rmax, self.dmax, self.warmup = rmax, dmax, warmup
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64, device=options.get("device")))
        self._recent: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=REMEMBERED)

    @classmethod
    def crossq(cls, num_features: int, **options: Any) -> Self:
        """Make a layer with the options of CrossQ.

        It is a batch norm for 100,000 steps, then rmax = 3 and dmax = 5; eps is 1e-3 and momentum 0.01.

        Parameters
        ----------
        num_features : int
            The number of channels C.
        **options
            Other arguments of the class. They replace these.

        Returns
        -------
        BatchRenorm
            The layer.

        References
        ----------
        Bhatt et al., "CrossQ: Batch Normalization in Deep Reinforcement Learning for Greater Sample Efficiency and
        Simplicity", 2024.

        Examples
        --------
        >>> import xhat.torch as xt
        >>> xt.BatchRenorm1d.crossq(4).warmup
        (100000, 100000)
        """
        preset = {"eps": 1e-3, "momentum": 0.01, "rmax": 3.0, "dmax": 5.0, "warmup": (100_000, 100_000)}
        return cls(num_features, **preset | options)  # type: ignore[arg-type]

    def bounds(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """Return the bounds of r and of the magnitude of d in the next step.

        Parameters
        ----------
        dtype : torch.dtype, default float32
            The dtype of the bounds.

        Returns
        -------
        tuple of torch.Tensor
            Two tensors of no dimension, on the device of the layer.

        Examples
        --------
        >>> import xhat.torch as xt
        >>> xt.BatchRenorm1d(4).bounds()
        (tensor(1.), tensor(0.))
        """
        first, full = self.warmup
        share = ((self.steps - first + 1).to(dtype) / (full - first + 1)).clamp(0, 1)
        # Where the share is 0, infinite bounds must not become NaN.
        return tuple(torch.where(share > 0, low + share * (high - low), low) for low, high in
                     ((1.0, self.rmax), (0.0, self.dmax)))  # type: ignore[return-value]  # fmt: skip

    def _normalized(
        self, t: Inputs, eps: Any, correction: Any, activation: Any, following: Following | None = None
    ) -> tuple[Tensor, Batch | None]:
        """A batch norm with the weight weight r and the bias bias + weight d."""
        recorded = "_follow" in vars(self)
        batch = None if t.mean is not None or recorded else self._batch_of(t, eps, correction)
        mean, var = self.running_mean, self.running_var
        if batch is not None and mean is not None and var is not None:
            r, d = self._corrections(batch.statistics, (mean, var), eps)
            shift = d if t.weight is None else t.weight * d
            t = t._replace(
                weight=r if t.weight is None else t.weight * r,
                bias=shift if t.bias is None else t.bias + shift,
            )
        return super()._normalized(t, eps, correction, activation, following)

    def _batch_of(self, t: Inputs, eps: Any, correction: Any) -> Batch | None:
        """The statistics of the batch, on many processes of all ranks."""
        alone = t.mask is None and super()._normalized is normalized and eager()
        if alone and (engine := engine_for(t.x)) is not None:
            m, _, (mean, m2) = engine.moments(t.x.detach(), None)
            return Batch(torch.stack((mean, equations.variance(m2, m, correction))), m) if m > 1 else None
        x = Inputs(t.x.detach(), None, None, None, t.mask, None, None)
        with torch.no_grad():
            return super()._normalized(x, eps, correction, None)[1]

    def _corrections(
        self, statistics: Tensor, running: tuple[Tensor, Tensor], eps: Any
    ) -> tuple[Tensor, Tensor]:
        """r and d (C,): constants, without a gradient."""
        remembering = not (tracing() or transforming())
        if remembering and recomputing():
            return self._remembered(statistics)
        with torch.no_grad():
            mean, var = statistics.detach().unbind(0)
            running_mean, running_var = (s.detach().to(mean.dtype) for s in running)
            rmax, dmax = self.bounds(mean.dtype)
            rstd = equations.reciprocal_std(running_var, eps, torch.sqrt)
            r = rstd / equations.reciprocal_std(var, eps, torch.sqrt)  # sigma / sigma_run
            r = torch.minimum(torch.maximum(r, 1 / rmax), rmax)
            d = equations.standardize(mean, running_mean, rstd)
            d = torch.minimum(torch.maximum(d, -dmax), dmax)
        if remembering:
            self._recent.append((statistics, r, d))
        return r, d

    def _remembered(self, statistics: Tensor) -> tuple[Tensor, Tensor]:
        """r and d of the forward pass that had these statistics: the running ones have moved since."""
        for before, r, d in reversed(self._recent):
            same = before.shape == statistics.shape and before.device == statistics.device
            if same and bool(((before == statistics) | before.isnan()).all()):
                return r, d
        raise ArgumentError(
            f"batch_norm: a forward pass within a backward pass repeats none of the last {REMEMBERED} of this layer, "
            "expected one of them: r and d are those of the first time. Run the backward pass earlier."
        )

    def _follow(self, running: Running, batch: Batch) -> None:
        super()._follow(running, batch)
        if not recomputing():
            self.steps.add_(1)

    def reset_running_stats(self) -> None:
        """Reset the running statistics, as `BatchNorm` does, and begin the warm-up anew; frozen statistics stay."""
        super().reset_running_stats()
        if "steps" in self._buffers and not self.frozen_statistics:
            self.steps.zero_()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        if f"{prefix}steps" not in state_dict:  # of a batch norm
            batches = state_dict.get(f"{prefix}num_batches_tracked")
            if batches is not None:
                state_dict[f"{prefix}steps"] = batches.clone()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        """Return the line of `BatchNorm`, the bounds and the warm-up."""
        return f"{super().extra_repr()}, rmax={self.rmax}, dmax={self.dmax}, warmup={self.warmup}"


class BatchRenorm1d(BatchRenorm, nn.BatchNorm1d):
    """Batch renormalization over (N, C) or (N, C, L), for small or dependent batches.

    ::

        y = act(weight (xhat r + d) + bias [+ residual])
        xhat = (x - mu) / sigma, by the batch
        sigma = sqrt(var + eps)     sigma_run = sqrt(running_var + eps)
        r = clip(sigma / sigma_run, 1 / rmax, rmax)
        d = clip((mu - running_mean) / sigma_run, -dmax, dmax)

    In training, r and d are constants of the batch and have no gradient: this is a batch norm with the weight ``weight
    r`` and the bias ``bias + weight d``. As long as nothing is clipped, y is what the layer computes in evaluation,
    ``(x - running_mean) / sigma_run``, with the gradients of a batch norm. Evaluation, masks, residuals, activations
    and the other options are those of `BatchNorm1d`.

    Parameters
    ----------
    num_features : int
        The number of channels C.
    eps : float, default 1e-5
        Added to the variance inside the square root.
    momentum : float or None, default 0.01
        The weight of a new batch in the running statistics; None for their plain average over the batches.
    affine : bool, default True
        Whether the layer has a weight and a bias.
    track_running_stats : bool, default True
        Whether the layer has running statistics. r and d need them, so False raises.
    rmax : float, default 3.0
        The bound of r, at least 1.
    dmax : float, default 5.0
        The bound of d, at least 0. With rmax=1 and dmax=0 the layer is a batch norm.
    warmup : (int, int), default (5000, 40000)
        (a, b): r = 1 and d = 0 for the first a steps, then the bounds grow linearly, up to rmax and dmax from step b
        on.
    device : torch.device, optional
        The device of parameters and buffers.
    dtype : torch.dtype, optional
        The dtype of parameters and buffers. Running statistics are float32 or wider whatever it is.
    bias : bool, default True
        Whether there is a bias beside the weight, in versions of torch whose layer has this argument.
    correction : {0, 1}, default 0
        The variance of the batch is ``m2 / (m - correction)``; 0 is torch's convention.
    running_correction : {0, 1}, default 1
        The same for running_var; 1 is torch's convention.
    activation : {None, "relu", "silu"} or ("leaky_relu", slope), optional
        An activation that is applied last and kept out of memory.
    nonfinite : {"propagate", "skip", "raise"}, default "propagate"
        What a batch with NaN, infinity or a variance that overflows does to the running statistics: it moves them, as
        in torch; its channels stay as they are and the buffer ``skipped`` counts them; or the call raises.

    Raises
    ------
    ArgumentError
        If the bounds or the warm-up have other values, without running statistics, or if an option has no valid value.
    ShapeError, DtypeError, DegenerateBatchError
        As `BatchNorm1d` does.

    Notes
    -----
    The buffer ``steps`` counts the batches that have moved the running statistics. A state dict without it has
    num_batches_tracked in its place.

    The statistics are those of torch's layers: the average of variances, not of deviations as in the paper, and by
    default with m - 1; running_correction=0 has m. A forward pass that activation checkpointing repeats has the r and
    d of the first one; the last 64 are kept. `recalibrate` records batches without r and d.

    References
    ----------
    Ioffe, "Batch Renormalization: Towards Reducing Minibatch Dependence in Batch-Normalized Models", 2017, algorithm 1.

    Examples
    --------
    After the warm-up, training gives what evaluation would give, unless r or d is clipped:

    >>> import torch
    >>> import xhat.torch as xt
    >>> layer = xt.BatchRenorm1d(1, warmup=(0, 0))
    >>> x = torch.tensor([[1.0], [2.0], [6.0]])
    >>> layer(x).flatten().detach().round(decimals=3)
    tensor([1., 2., 6.])
    """


class BatchRenorm2d(BatchRenorm, nn.BatchNorm2d):
    """Batch renormalization over (N, C, H, W), for small or dependent batches.

    ::

        y = act(weight (xhat r + d) + bias [+ residual])
        xhat = (x - mu) / sigma, by the batch
        sigma = sqrt(var + eps)     sigma_run = sqrt(running_var + eps)
        r = clip(sigma / sigma_run, 1 / rmax, rmax)
        d = clip((mu - running_mean) / sigma_run, -dmax, dmax)

    In training, r and d are constants of the batch and have no gradient: this is a batch norm with the weight ``weight
    r`` and the bias ``bias + weight d``. As long as nothing is clipped, y is what the layer computes in evaluation,
    ``(x - running_mean) / sigma_run``, with the gradients of a batch norm. Evaluation, masks, residuals, activations
    and the other options are those of `BatchNorm2d`.

    Parameters
    ----------
    num_features : int
        The number of channels C.
    eps : float, default 1e-5
        Added to the variance inside the square root.
    momentum : float or None, default 0.01
        The weight of a new batch in the running statistics; None for their plain average over the batches.
    affine : bool, default True
        Whether the layer has a weight and a bias.
    track_running_stats : bool, default True
        Whether the layer has running statistics. r and d need them, so False raises.
    rmax : float, default 3.0
        The bound of r, at least 1.
    dmax : float, default 5.0
        The bound of d, at least 0. With rmax=1 and dmax=0 the layer is a batch norm.
    warmup : (int, int), default (5000, 40000)
        (a, b): r = 1 and d = 0 for the first a steps, then the bounds grow linearly, up to rmax and dmax from step b
        on.
    device : torch.device, optional
        The device of parameters and buffers.
    dtype : torch.dtype, optional
        The dtype of parameters and buffers. Running statistics are float32 or wider whatever it is.
    bias : bool, default True
        Whether there is a bias beside the weight, in versions of torch whose layer has this argument.
    correction : {0, 1}, default 0
        The variance of the batch is ``m2 / (m - correction)``; 0 is torch's convention.
    running_correction : {0, 1}, default 1
        The same for running_var; 1 is torch's convention.
    activation : {None, "relu", "silu"} or ("leaky_relu", slope), optional
        An activation that is applied last and kept out of memory.
    nonfinite : {"propagate", "skip", "raise"}, default "propagate"
        What a batch with NaN, infinity or a variance that overflows does to the running statistics: it moves them, as
        in torch; its channels stay as they are and the buffer ``skipped`` counts them; or the call raises.

    Raises
    ------
    ArgumentError
        If the bounds or the warm-up have other values, without running statistics, or if an option has no valid value.
    ShapeError, DtypeError, DegenerateBatchError
        As `BatchNorm2d` does.

    Notes
    -----
    The buffer ``steps`` counts the batches that have moved the running statistics. A state dict without it has
    num_batches_tracked in its place.

    The statistics are those of torch's layers: the average of variances, not of deviations as in the paper, and by
    default with m - 1; running_correction=0 has m. A forward pass that activation checkpointing repeats has the r and
    d of the first one; the last 64 are kept. `recalibrate` records batches without r and d.

    References
    ----------
    Ioffe, "Batch Renormalization: Towards Reducing Minibatch Dependence in Batch-Normalized Models", 2017, algorithm 1.

    Examples
    --------
    After the warm-up, training gives what evaluation would give, unless r or d is clipped:

    >>> import torch
    >>> import xhat.torch as xt
    >>> layer = xt.BatchRenorm2d(1, warmup=(0, 0))
    >>> x = torch.tensor([1.0, 2.0, 6.0]).reshape(1, 1, 1, 3)
    >>> layer(x).flatten().detach().round(decimals=3)
    tensor([1., 2., 6.])
    """


class BatchRenorm3d(BatchRenorm, nn.BatchNorm3d):
    """Batch renormalization over (N, C, D, H, W), for small or dependent batches.

    ::

        y = act(weight (xhat r + d) + bias [+ residual])
        xhat = (x - mu) / sigma, by the batch
        sigma = sqrt(var + eps)     sigma_run = sqrt(running_var + eps)
        r = clip(sigma / sigma_run, 1 / rmax, rmax)
        d = clip((mu - running_mean) / sigma_run, -dmax, dmax)

    In training, r and d are constants of the batch and have no gradient: this is a batch norm with the weight ``weight
    r`` and the bias ``bias + weight d``. As long as nothing is clipped, y is what the layer computes in evaluation,
    ``(x - running_mean) / sigma_run``, with the gradients of a batch norm. Evaluation, masks, residuals, activations
    and the other options are those of `BatchNorm3d`.

    Parameters
    ----------
    num_features : int
        The number of channels C.
    eps : float, default 1e-5
        Added to the variance inside the square root.
    momentum : float or None, default 0.01
        The weight of a new batch in the running statistics; None for their plain average over the batches.
    affine : bool, default True
        Whether the layer has a weight and a bias.
    track_running_stats : bool, default True
        Whether the layer has running statistics. r and d need them, so False raises.
    rmax : float, default 3.0
        The bound of r, at least 1.
    dmax : float, default 5.0
        The bound of d, at least 0. With rmax=1 and dmax=0 the layer is a batch norm.
    warmup : (int, int), default (5000, 40000)
        (a, b): r = 1 and d = 0 for the first a steps, then the bounds grow linearly, up to rmax and dmax from step b
        on.
    device : torch.device, optional
        The device of parameters and buffers.
    dtype : torch.dtype, optional
        The dtype of parameters and buffers. Running statistics are float32 or wider whatever it is.
    bias : bool, default True
        Whether there is a bias beside the weight, in versions of torch whose layer has this argument.
    correction : {0, 1}, default 0
        The variance of the batch is ``m2 / (m - correction)``; 0 is torch's convention.
    running_correction : {0, 1}, default 1
        The same for running_var; 1 is torch's convention.
    activation : {None, "relu", "silu"} or ("leaky_relu", slope), optional
        An activation that is applied last and kept out of memory.
    nonfinite : {"propagate", "skip", "raise"}, default "propagate"
        What a batch with NaN, infinity or a variance that overflows does to the running statistics: it moves them, as
        in torch; its channels stay as they are and the buffer ``skipped`` counts them; or the call raises.

    Raises
    ------
    ArgumentError
        If the bounds or the warm-up have other values, without running statistics, or if an option has no valid value.
    ShapeError, DtypeError, DegenerateBatchError
        As `BatchNorm3d` does.

    Notes
    -----
    The buffer ``steps`` counts the batches that have moved the running statistics. A state dict without it has
    num_batches_tracked in its place.

    The statistics are those of torch's layers: the average of variances, not of deviations as in the paper, and by
    default with m - 1; running_correction=0 has m. A forward pass that activation checkpointing repeats has the r and
    d of the first one; the last 64 are kept. `recalibrate` records batches without r and d.

    References
    ----------
    Ioffe, "Batch Renormalization: Towards Reducing Minibatch Dependence in Batch-Normalized Models", 2017, algorithm 1.

    Examples
    --------
    After the warm-up, training gives what evaluation would give, unless r or d is clipped:

    >>> import torch
    >>> import xhat.torch as xt
    >>> layer = xt.BatchRenorm3d(1, warmup=(0, 0))
    >>> x = torch.tensor([1.0, 2.0, 6.0]).reshape(1, 1, 1, 1, 3)
    >>> layer(x).flatten().detach().round(decimals=3)
    tensor([1., 2., 6.])
    """
