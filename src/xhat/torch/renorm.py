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

        y = act(weight (xhat r + d) + bias [+ residual])        xhat = (x - mu) / sigma, by the batch
        r = clip(sigma / sigma_run, 1 / rmax, rmax)             sigma = sqrt(var + eps)
        d = clip((mu - running_mean) / sigma_run, -dmax, dmax)  sigma_run = sqrt(running_var + eps)

    In training, r and d are constants of the batch and have no gradient: this is a batch norm with the weight
    weight r and the bias bias + weight d. As long as nothing is clipped, y is what the layer computes in evaluation,
    (x - running_mean) / sigma_run, with the gradients of a batch norm. Evaluation, masks, residuals, activations and
    the other options are those of `BatchNorm`.

    rmax, dmax   the bounds, rmax >= 1 and dmax >= 0; (1, 0) is a batch norm
    warmup       (a, b): r = 1 and d = 0 for the first a steps, then the bounds grow linearly, up to rmax and dmax from
                 step b on. The buffer `steps` counts the batches that have moved the running statistics; a state dict
                 without it has num_batches_tracked in its place.

    The statistics are those of torch's layers: the average of variances, not of deviations as in the paper, and by
    default with m - 1; running_correction=0 has m. A forward pass that activation checkpointing repeats has the r and d
    of the first one; the last 64 are kept. `recalibrate` records batches without r and d.
    Raises what `BatchNorm` raises, and ArgumentError for other bounds or without running statistics.
    Source: Ioffe, "Batch Renormalization", 2017, algorithm 1.
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
        """The layer of CrossQ (Bhatt et al., 2024): a batch norm for 100,000 steps, then rmax = 3 and dmax = 5."""
        preset = {"eps": 1e-3, "momentum": 0.01, "rmax": 3.0, "dmax": 5.0, "warmup": (100_000, 100_000)}
        return cls(num_features, **preset | options)  # type: ignore[arg-type]

    def bounds(self, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        """The bounds of r and of |d| in the next step, as scalars."""
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
        """`BatchNorm`'s, and the warm-up begins anew. Frozen statistics stay."""
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
        """`BatchNorm`'s, the bounds and the warm-up."""
        return f"{super().extra_repr()}, rmax={self.rmax}, dmax={self.dmax}, warmup={self.warmup}"


class BatchRenorm1d(BatchRenorm, nn.BatchNorm1d):
    """`BatchRenorm` for (N, C) and (N, C, L)."""


class BatchRenorm2d(BatchRenorm, nn.BatchNorm2d):
    """`BatchRenorm` for (N, C, H, W)."""


class BatchRenorm3d(BatchRenorm, nn.BatchNorm3d):
    """`BatchRenorm` for (N, C, D, H, W)."""
