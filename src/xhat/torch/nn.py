"""The layers: torch.nn's batch norms with more options and fewer surprises. Only state and its policies live here."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from xhat.checks import check_correction, shown
from xhat.errors import ShapeError, XhatError
from xhat.plan import check_options
from xhat.torch import exported, tools
from xhat.torch.errors import TensorArgumentError, TensorTypeError, named
from xhat.torch.functional import follow, normalized
from xhat.torch.inputs import Batch, Inputs, check_nonfinite
from xhat.torch.internals import copied_by_jit, exporting
from xhat.torch.running_stats import Running

__all__ = [
    "DEFAULTS",
    "BatchNorm",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "LazyBatchNorm1d",
    "LazyBatchNorm2d",
    "LazyBatchNorm3d",
]

Maybe = Tensor | None

# The defaults of the options that torch's layers do not have.
DEFAULTS = {"correction": 0, "running_correction": 1, "activation": None, "nonfinite": "propagate"}


class BatchNorm(nn.modules.batchnorm._BatchNorm):
    """What the layers share; use `BatchNorm1d`, `BatchNorm2d` or `BatchNorm3d`.

        y = act(weight (x - mu) / sqrt(var + eps) + bias [+ residual])
        training     mu, var of the batch (var = m2 / (m - correction)); the running statistics follow, with
                     m2 / (m - running_correction) for the variance
        evaluation   mu, var = running_mean, running_var

    The arguments, defaults, parameters, buffers and state_dict are those of torch.nn.BatchNorm*d, and besides:

    correction          0 (torch's convention) or 1: what the batch's variance divides by is m - correction.
    running_correction  1 (torch's convention) or 0, for running_var.
    activation          None, "relu", ("leaky_relu", slope) or "silu", applied last and kept out of memory.
    nonfinite           What a batch with NaN, infinity or a variance that overflows does to the running statistics:
                        "propagate" (torch's way), "skip" (such channels stay; `skipped` counts them) or "raise".

    The activation is hidden from tools that compute a batch norm from its parameters: they get an `eps` that raises an
    ArgumentError in the sum with a variance. Setting `nonfinite` makes the buffer `skipped`.
    Running statistics are float32 or wider whatever the layer is cast to. A forward pass within a backward pass, where
    activation checkpointing repeats one, does not move them, and neither does an empty batch.
    Raises classes of xhat.errors that name the layer by its path in the running model.
    """

    running_mean: Tensor | None
    running_var: Tensor | None
    num_batches_tracked: Tensor | None
    skipped: Tensor | None
    frozen_statistics = False
    frozen_affine = False
    __prepare_scriptable__ = tools.refuse_script
    _normalized = staticmethod(normalized)  # a layer on many processes has its own

    def __init__(self, *args: Any, correction: int = 0, running_correction: int = 1, activation: Any = None,
                 nonfinite: str = "propagate", **kwargs: Any) -> None:  # fmt: skip
        super().__init__(*args, **kwargs)
        self.correction = correction
        self.running_correction = running_correction
        self.activation = activation
        self.nonfinite = nonfinite
        check_options("batch_norm", 1.0, correction, activation)
        check_correction(running_correction, "batch_norm", "running_correction")
        self._widen_statistics()

    @property
    def eps(self) -> Any:
        """What is added to the variance: a float, or what refuses to be added if the layer has an activation."""
        value, activation = vars(self)["eps"], vars(self).get("activation")
        if activation is None or copied_by_jit():
            return value
        return tools.EpsOfALayerWithAnActivation.read(value, type(self).__name__, activation)

    @eps.setter
    def eps(self, value: Any) -> None:
        self._eps = float(value) if isinstance(value, tools.EpsOfALayerWithAnActivation) else value
        vars(self)["eps"] = self._eps  # which torch.compile before 2.13 takes for the property

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("running_mean", "running_var") and self.frozen_statistics:
            tools.check_frozen(self, name, value)
        if name == "nonfinite":
            check_nonfinite(value)
        super().__setattr__(name, value)
        if name == "nonfinite" and self._buffers.get("skipped") is None:
            self._count_skipped()

    def forward(
        self,
        input: Tensor,
        residual: Tensor | None = None,
        mask: Tensor | None = None,
        activation: Any = None,
    ) -> Tensor:
        """y, in input's dtype and memory format.

        residual: as input, added before the activation. mask: bool or weights >= 0 that broadcast to input with size 1
        along the channels: they weigh the batch's statistics, and nothing in evaluation; where the weight is 0, input
        may be NaN. activation: for this call, in place of the layer's own.
        """
        if isinstance(input, fx.Proxy):  # torch.fx records a layer of torch's as one call, and so one of ours
            return self._traced(input, residual=residual, mask=mask, activation=activation)
        activation = self.activation if activation is None else activation
        learning = self.training and not self.frozen_statistics
        try:
            mean, var, weight, bias = self._prepared(input)
            given = (None, None) if learning or mean is None or var is None else (mean, var)
            running, eps = None, self._eps
            if learning and self.track_running_stats and mean is not None and var is not None:
                running = Running(mean, var, self._buffers["num_batches_tracked"], self._buffers["skipped"])
                if exporting() and mask is None and self._has_torchs_options():
                    inputs = Inputs(input, weight, bias, residual, None, None, None)
                    y = exported.training(inputs, running, self.momentum, eps, activation)
                    if y is not None:
                        return y
            y, batch = self._normalized(
                Inputs(input, weight, bias, residual, mask, *given), eps, self.correction, activation
            )
            if batch is not None and running is not None:
                self._follow(running, batch)
        except XhatError as error:
            raise type(error)(f"{named(self)}: {error}") from None
        return y

    def _prepared(self, x: Tensor) -> tuple[Maybe, Maybe, Maybe, Maybe]:
        """Checks the dimensions of x, and gives running mean and variance, weight and bias for it."""
        try:
            self._check_input_dim(x)
        except AttributeError:
            if not isinstance(x, Tensor):
                raise TensorTypeError(
                    f"batch_norm: input is {type(x).__name__}, expected a tensor."
                ) from None
            raise
        except ValueError as error:
            raise ShapeError(f"batch_norm: {error}: its shape is {shown(x.shape)}.") from None
        # Attributes of a module take longer than a small kernel.
        buffers, parameters = self._buffers, self._parameters
        weight: Maybe
        bias: Maybe
        try:
            mean, var = buffers["running_mean"], buffers["running_var"]
            weight, bias = parameters["weight"], parameters["bias"]
        except KeyError:  # statistics that became parameters, to be learned; parametrized weights
            mean, var = self.running_mean, self.running_var
            weight, bias = self.weight, self.bias
        if (mean is None) is not (var is None) and (self.track_running_stats or not self.training):
            raise TensorArgumentError(
                "batch_norm: one of running_mean and running_var is None, expected both or neither."
            )
        if self._forward_hooks and self.training and not self.frozen_statistics:
            tools.check_per_sample(weight, bias)
        if self.frozen_affine:
            weight, bias = (None if p is None else p.detach() for p in (weight, bias))
        return mean, var, weight, bias

    def _traced(self, x: fx.Proxy, **options: Any) -> Any:
        """A call of this layer in a graph of torch.fx, with the options that are given."""
        given = {name: value for name, value in options.items() if value is not None}
        path = x.tracer.path_of_module(self)  # type: ignore[attr-defined]
        tools.check_tracer(self, path)
        return x.tracer.create_proxy("call_module", path, (x,), given)

    def _follow(self, running: Running, batch: Batch) -> None:
        """Updates the running statistics; `recalibrate` replaces this for a while."""
        follow(running, batch, self.momentum, self.correction, self.running_correction, self.nonfinite)

    def extra_repr(self) -> str:
        """torch's, and what differs from its defaults."""
        shown = str(super().extra_repr())
        shown += "".join(f", {k}={getattr(self, k)!r}" for k, v in DEFAULTS.items() if getattr(self, k) != v)
        frozen = [k for k in ("statistics", "affine") if getattr(self, f"frozen_{k}")]
        return shown + (f", frozen={'+'.join(frozen)}" if frozen else "")

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Casts parameters as torch does; statistics stay at least float32 and counters int64: 16 bits lose updates."""
        before = dict(self._buffers)
        result = super()._apply(fn, recurse)
        for name, old in before.items():
            new = self._buffers.get(name)
            if old is None or new is None:
                continue
            counter = old.dtype == torch.int64
            if (counter and new.dtype != old.dtype) or new.dtype.itemsize < 4:
                self._buffers[name] = old.to(device=new.device)
        return result

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        """torch's; assigned statistics (assign=True) are widened, and `skipped`, a count of other batches, is reset."""
        with self._statistics_assignable():
            super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
            self._widen_statistics()
        mean, batches = self.running_mean, self._buffers.get("num_batches_tracked")
        if batches is not None and batches.dtype != torch.int64:
            self._buffers["num_batches_tracked"] = batches.long()
        if self.skipped is None or mean is None:
            return
        if self.skipped.shape != mean.shape or self.skipped.device != mean.device:
            self._count_skipped()
        elif f"{prefix}num_batches_tracked" in state_dict:
            self.skipped.zero_()

    def reset_running_stats(self) -> None:
        """torch's, and resets the counts of `skipped`. Frozen statistics stay."""
        if self.frozen_statistics:
            return
        super().reset_running_stats()
        skipped = getattr(self, "skipped", None)
        if skipped is not None:
            skipped.zero_()

    def reset_parameters(self) -> None:
        """torch's: initializes the layer anew, with its statistics, frozen or not."""
        with self._statistics_assignable():
            super().reset_parameters()

    def _has_torchs_options(self) -> bool:
        """Whether the statistics are those that torch's layer would take."""
        options = (self.correction, self.running_correction, self.nonfinite)
        return options == (0, 1, "propagate") and type(self)._normalized is normalized

    @contextmanager
    def _statistics_assignable(self) -> Iterator[None]:
        """Where frozen statistics may be replaced: a state dict is loaded, or the layer is initialized anew."""
        frozen = self.frozen_statistics
        if frozen:
            self.frozen_statistics = False
        try:
            yield
        finally:
            if frozen:
                self.frozen_statistics = True

    def _widen_statistics(self) -> None:
        for name in ("running_mean", "running_var"):
            value = getattr(self, name)
            if isinstance(value, Tensor) and not nn.parameter.is_lazy(value) and value.dtype.itemsize < 4:
                setattr(self, name, value.float())

    def _count_skipped(self) -> None:
        """Makes the buffer `skipped`: how many batches each channel has left out. It is not in the state_dict."""
        counts, mean = None, self.running_mean
        if self.nonfinite == "skip" and self.track_running_stats and mean is not None:
            channels = self.num_features if nn.parameter.is_lazy(mean) else len(mean)
            counts = torch.zeros(channels, dtype=torch.long, device=mean.device)
        self.register_buffer("skipped", counts, persistent=False)


class BatchNorm1d(BatchNorm, nn.BatchNorm1d):
    """`torch.nn.BatchNorm1d` for (N, C) and (N, C, L), with the options of `BatchNorm`."""


class BatchNorm2d(BatchNorm, nn.BatchNorm2d):
    """`torch.nn.BatchNorm2d` for (N, C, H, W), with the options of `BatchNorm`."""


class BatchNorm3d(BatchNorm, nn.BatchNorm3d):
    """`torch.nn.BatchNorm3d` for (N, C, D, H, W), with the options of `BatchNorm`."""


class _Lazy(BatchNorm):
    """A layer that takes its number of channels from the first input, and then becomes an ordinary layer."""

    def initialize_parameters(self, input: Tensor, *_: Any, **__: Any) -> None:
        """Makes parameters and buffers for input's channels."""
        super().initialize_parameters(input)  # type: ignore[misc]  # torch's lazy class, which comes next
        self._widen_statistics()
        self._count_skipped()


class LazyBatchNorm1d(_Lazy, nn.LazyBatchNorm1d):
    """`BatchNorm1d` without num_features."""

    cls_to_become = BatchNorm1d


class LazyBatchNorm2d(_Lazy, nn.LazyBatchNorm2d):
    """`BatchNorm2d` without num_features."""

    cls_to_become = BatchNorm2d


class LazyBatchNorm3d(_Lazy, nn.LazyBatchNorm3d):
    """`BatchNorm3d` without num_features."""

    cls_to_become = BatchNorm3d
