"""The layers: torch.nn's batch norms with more options and fewer surprises. Only state and its policies live here."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from xhat.checks import check_correction, shown
from xhat.errors import ShapeError, XhatError
from xhat.plan import check_options
from xhat.torch import engines, exported, tools
from xhat.torch.errors import TensorArgumentError, TensorTypeError, named
from xhat.torch.functional import follow, normalized
from xhat.torch.inputs import Batch, Inputs, check_nonfinite
from xhat.torch.internals import copied_by_jit, exporting
from xhat.torch.running_stats import Following, Running

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

    ::

        y = act(weight (x - mu) / sqrt(var + eps) + bias [+ residual])
        training     mu and var = m2 / (m - correction) of the batch; the running statistics
                     follow, with m2 / (m - running_correction) for the variance
        evaluation   mu, var = running_mean, running_var

    The arguments, defaults, parameters, buffers and state_dict are those of torch's layers; what follows them is new.

    Parameters
    ----------
    num_features : int
        The number of channels C.
    eps : float, default 1e-5
        Added to the variance inside the square root.
    momentum : float or None, default 0.1
        The weight of a new batch in the running statistics; None for their plain average over the batches.
    affine : bool, default True
        Whether the layer has a weight and a bias.
    track_running_stats : bool, default True
        Whether the layer has running statistics. Without them, evaluation uses those of its own batch.
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

    Attributes
    ----------
    weight, bias : torch.nn.Parameter or None
        gamma and beta, of shape (C,). None without affine.
    running_mean, running_var : torch.Tensor or None
        The running statistics, of shape (C,), float32 or wider whatever the layer is cast to.
    num_batches_tracked : torch.Tensor or None
        The number of batches that the running statistics have seen.
    skipped : torch.Tensor or None
        How many batches each channel has left out, with ``nonfinite="skip"``. It is not in the state_dict.
    frozen_statistics, frozen_affine : bool
        Whether `freeze` has made constants of the statistics, and of weight and bias.

    Raises
    ------
    ShapeError
        If a tensor does not fit the layer, or the input has other dimensions.
    DtypeError
        If a tensor has a dtype other than float64, float32, float16 and bfloat16.
    ArgumentError
        If an option or a weight of the mask has no valid value, or with ``nonfinite="raise"``.
    DegenerateBatchError
        If a batch in training has a single value per channel, or if m <= correction or running_correction.

    Notes
    -----
    Errors are classes of `xhat.errors` that name the layer by its path in the running model; where torch raises for the
    same mistake, they are of torch's class as well.

    The activation is hidden from tools that compute a batch norm from its parameters: they get an ``eps`` that raises
    an ArgumentError in the sum with a variance. Setting ``nonfinite`` makes the buffer ``skipped``.

    A forward pass within a backward pass, where activation checkpointing repeats one, does not move the running
    statistics, and neither does an empty batch.

    References
    ----------
    Ioffe and Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift",
    2015.

    Examples
    --------
    >>> import torch
    >>> import xhat.torch as xt
    >>> layer = xt.BatchNorm1d(1, activation="relu", correction=1)
    >>> layer(torch.tensor([[1.0], [2.0], [6.0]])).flatten().tolist()[:2]
    [0.0, 0.0]
    >>> layer.running_var
    tensor([1.6000])
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
        """Normalize the input.

        Parameters
        ----------
        input : torch.Tensor
            The batch, with C channels in dimension 1: float64, float32, float16 or bfloat16, any strides.
        residual : torch.Tensor, optional
            Added before the activation, in the shape and dtype of the input.
        mask : torch.Tensor, optional
            Bool, or weights of at least 0. It broadcasts to the input and has size 1 along the channels. It weighs the
            statistics of the batch, and nothing in evaluation. Where the weight is 0, the input may be NaN.
        activation : {None, "relu", "silu"} or ("leaky_relu", slope), optional
            An activation for this call, in place of the layer's own.

        Returns
        -------
        torch.Tensor
            The result y, in the shape, dtype and memory format of the input.

        Examples
        --------
        >>> import torch
        >>> import xhat.torch as xt
        >>> layer = xt.BatchNorm1d(1)
        >>> x = torch.tensor([[1.0], [3.0], [float("nan")]])
        >>> y = layer(x, mask=torch.tensor([[True], [True], [False]]))
        >>> layer.running_mean
        tensor([0.2000])
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
                    t = Inputs(input, weight, bias, residual, None, None, None)
                    y = exported.training(t, running, self.momentum, eps, activation)
                    if y is not None:
                        return y
            t = Inputs(input, weight, bias, residual, mask, *given)
            early = self._following(running) if engines.switched_on else None
            y, batch = self._normalized(t, eps, self.correction, activation, early)
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

    def _following(self, running: Running | None) -> Following | None:
        """The running statistics, if they may move before `_follow` is called."""
        if running is None or "_follow" in self.__dict__:
            return None
        return Following(running, self.momentum, self.correction, self.running_correction, self.nonfinite)

    def _follow(self, running: Running, batch: Batch) -> None:
        """Updates the running statistics; `recalibrate` replaces this for a while."""
        options = self.momentum, self.correction, self.running_correction, self.nonfinite
        follow(Following(running, *options), batch)

    def extra_repr(self) -> str:
        """Return torch's line, and the options that differ from their defaults."""
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
        """Reset the running statistics, as torch does, and the counts of ``skipped``; frozen statistics stay."""
        if self.frozen_statistics:
            return
        super().reset_running_stats()
        skipped = getattr(self, "skipped", None)
        if skipped is not None:
            skipped.zero_()

    def reset_parameters(self) -> None:
        """Initialize the layer anew, as torch does, with its statistics, frozen or not."""
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
    """Batch normalization over (N, C) or (N, C, L): `torch.nn.BatchNorm1d` with more options.

    ::

        y = act(weight (x - mu) / sqrt(var + eps) + bias [+ residual])
        training     mu and var = m2 / (m - correction) of the batch; the running statistics
                     follow, with m2 / (m - running_correction) for the variance
        evaluation   mu, var = running_mean, running_var

    The arguments, defaults, parameters, buffers and state_dict are those of torch's layers; what follows them is new.

    Parameters
    ----------
    num_features : int
        The number of channels C.
    eps : float, default 1e-5
        Added to the variance inside the square root.
    momentum : float or None, default 0.1
        The weight of a new batch in the running statistics; None for their plain average over the batches.
    affine : bool, default True
        Whether the layer has a weight and a bias.
    track_running_stats : bool, default True
        Whether the layer has running statistics. Without them, evaluation uses those of its own batch.
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

    Attributes
    ----------
    weight, bias : torch.nn.Parameter or None
        gamma and beta, of shape (C,). None without affine.
    running_mean, running_var : torch.Tensor or None
        The running statistics, of shape (C,), float32 or wider whatever the layer is cast to.
    num_batches_tracked : torch.Tensor or None
        The number of batches that the running statistics have seen.
    skipped : torch.Tensor or None
        How many batches each channel has left out, with ``nonfinite="skip"``. It is not in the state_dict.
    frozen_statistics, frozen_affine : bool
        Whether `freeze` has made constants of the statistics, and of weight and bias.

    Raises
    ------
    ShapeError
        If a tensor does not fit the layer, or the input has other dimensions.
    DtypeError
        If a tensor has a dtype other than float64, float32, float16 and bfloat16.
    ArgumentError
        If an option or a weight of the mask has no valid value, or with ``nonfinite="raise"``.
    DegenerateBatchError
        If a batch in training has a single value per channel, or if m <= correction or running_correction.

    See Also
    --------
    convert : Turn the batch norms of a model into these layers.

    Notes
    -----
    Errors are classes of `xhat.errors` that name the layer by its path in the running model; where torch raises for the
    same mistake, they are of torch's class as well.

    The activation is hidden from tools that compute a batch norm from its parameters: they get an ``eps`` that raises
    an ArgumentError in the sum with a variance. Setting ``nonfinite`` makes the buffer ``skipped``.

    A forward pass within a backward pass, where activation checkpointing repeats one, does not move the running
    statistics, and neither does an empty batch.

    References
    ----------
    Ioffe and Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift",
    2015.

    Examples
    --------
    >>> import torch
    >>> import xhat.torch as xt
    >>> layer = xt.BatchNorm1d(1)
    >>> x = torch.tensor([[1.0], [2.0], [6.0]])
    >>> layer(x).flatten().detach()
    tensor([-0.9258, -0.4629,  1.3887])
    >>> layer.running_mean, layer.running_var
    (tensor([0.3000]), tensor([1.6000]))
    >>> layer.eval()(x).flatten().detach()
    tensor([0.5534, 1.3440, 4.5062])
    """


class BatchNorm2d(BatchNorm, nn.BatchNorm2d):
    """Batch normalization over (N, C, H, W): `torch.nn.BatchNorm2d` with more options.

    ::

        y = act(weight (x - mu) / sqrt(var + eps) + bias [+ residual])
        training     mu and var = m2 / (m - correction) of the batch; the running statistics
                     follow, with m2 / (m - running_correction) for the variance
        evaluation   mu, var = running_mean, running_var

    The arguments, defaults, parameters, buffers and state_dict are those of torch's layers; what follows them is new.

    Parameters
    ----------
    num_features : int
        The number of channels C.
    eps : float, default 1e-5
        Added to the variance inside the square root.
    momentum : float or None, default 0.1
        The weight of a new batch in the running statistics; None for their plain average over the batches.
    affine : bool, default True
        Whether the layer has a weight and a bias.
    track_running_stats : bool, default True
        Whether the layer has running statistics. Without them, evaluation uses those of its own batch.
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

    Attributes
    ----------
    weight, bias : torch.nn.Parameter or None
        gamma and beta, of shape (C,). None without affine.
    running_mean, running_var : torch.Tensor or None
        The running statistics, of shape (C,), float32 or wider whatever the layer is cast to.
    num_batches_tracked : torch.Tensor or None
        The number of batches that the running statistics have seen.
    skipped : torch.Tensor or None
        How many batches each channel has left out, with ``nonfinite="skip"``. It is not in the state_dict.
    frozen_statistics, frozen_affine : bool
        Whether `freeze` has made constants of the statistics, and of weight and bias.

    Raises
    ------
    ShapeError
        If a tensor does not fit the layer, or the input has other dimensions.
    DtypeError
        If a tensor has a dtype other than float64, float32, float16 and bfloat16.
    ArgumentError
        If an option or a weight of the mask has no valid value, or with ``nonfinite="raise"``.
    DegenerateBatchError
        If a batch in training has a single value per channel, or if m <= correction or running_correction.

    See Also
    --------
    convert : Turn the batch norms of a model into these layers.

    Notes
    -----
    Errors are classes of `xhat.errors` that name the layer by its path in the running model; where torch raises for the
    same mistake, they are of torch's class as well.

    The activation is hidden from tools that compute a batch norm from its parameters: they get an ``eps`` that raises
    an ArgumentError in the sum with a variance. Setting ``nonfinite`` makes the buffer ``skipped``.

    A forward pass within a backward pass, where activation checkpointing repeats one, does not move the running
    statistics, and neither does an empty batch.

    References
    ----------
    Ioffe and Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift",
    2015.

    Examples
    --------
    >>> import torch
    >>> import xhat.torch as xt
    >>> layer = xt.BatchNorm2d(1)
    >>> x = torch.tensor([1.0, 2.0, 6.0]).reshape(1, 1, 1, 3)
    >>> layer(x).flatten().detach()
    tensor([-0.9258, -0.4629,  1.3887])
    >>> layer.running_mean, layer.running_var
    (tensor([0.3000]), tensor([1.6000]))
    >>> layer.eval()(x).flatten().detach()
    tensor([0.5534, 1.3440, 4.5062])
    """


class BatchNorm3d(BatchNorm, nn.BatchNorm3d):
    """Batch normalization over (N, C, D, H, W): `torch.nn.BatchNorm3d` with more options.

    ::

        y = act(weight (x - mu) / sqrt(var + eps) + bias [+ residual])
        training     mu and var = m2 / (m - correction) of the batch; the running statistics
                     follow, with m2 / (m - running_correction) for the variance
        evaluation   mu, var = running_mean, running_var

    The arguments, defaults, parameters, buffers and state_dict are those of torch's layers; what follows them is new.

    Parameters
    ----------
    num_features : int
        The number of channels C.
    eps : float, default 1e-5
        Added to the variance inside the square root.
    momentum : float or None, default 0.1
        The weight of a new batch in the running statistics; None for their plain average over the batches.
    affine : bool, default True
        Whether the layer has a weight and a bias.
    track_running_stats : bool, default True
        Whether the layer has running statistics. Without them, evaluation uses those of its own batch.
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

    Attributes
    ----------
    weight, bias : torch.nn.Parameter or None
        gamma and beta, of shape (C,). None without affine.
    running_mean, running_var : torch.Tensor or None
        The running statistics, of shape (C,), float32 or wider whatever the layer is cast to.
    num_batches_tracked : torch.Tensor or None
        The number of batches that the running statistics have seen.
    skipped : torch.Tensor or None
        How many batches each channel has left out, with ``nonfinite="skip"``. It is not in the state_dict.
    frozen_statistics, frozen_affine : bool
        Whether `freeze` has made constants of the statistics, and of weight and bias.

    Raises
    ------
    ShapeError
        If a tensor does not fit the layer, or the input has other dimensions.
    DtypeError
        If a tensor has a dtype other than float64, float32, float16 and bfloat16.
    ArgumentError
        If an option or a weight of the mask has no valid value, or with ``nonfinite="raise"``.
    DegenerateBatchError
        If a batch in training has a single value per channel, or if m <= correction or running_correction.

    See Also
    --------
    convert : Turn the batch norms of a model into these layers.

    Notes
    -----
    Errors are classes of `xhat.errors` that name the layer by its path in the running model; where torch raises for the
    same mistake, they are of torch's class as well.

    The activation is hidden from tools that compute a batch norm from its parameters: they get an ``eps`` that raises
    an ArgumentError in the sum with a variance. Setting ``nonfinite`` makes the buffer ``skipped``.

    A forward pass within a backward pass, where activation checkpointing repeats one, does not move the running
    statistics, and neither does an empty batch.

    References
    ----------
    Ioffe and Szegedy, "Batch Normalization: Accelerating Deep Network Training by Reducing Internal Covariate Shift",
    2015.

    Examples
    --------
    >>> import torch
    >>> import xhat.torch as xt
    >>> layer = xt.BatchNorm3d(1)
    >>> x = torch.tensor([1.0, 2.0, 6.0]).reshape(1, 1, 1, 1, 3)
    >>> layer(x).flatten().detach()
    tensor([-0.9258, -0.4629,  1.3887])
    >>> layer.running_mean, layer.running_var
    (tensor([0.3000]), tensor([1.6000]))
    >>> layer.eval()(x).flatten().detach()
    tensor([0.5534, 1.3440, 4.5062])
    """


class _Lazy(BatchNorm):
    """A layer that takes its number of channels from the first input, and then becomes an ordinary layer."""

    def initialize_parameters(self, input: Tensor, *_: Any, **__: Any) -> None:
        """Makes parameters and buffers for input's channels."""
        super().initialize_parameters(input)  # type: ignore[misc]  # torch's lazy class, which comes next
        self._widen_statistics()
        self._count_skipped()


class LazyBatchNorm1d(_Lazy, nn.LazyBatchNorm1d):
    """`BatchNorm1d` that takes its number of channels from the first input, as `torch.nn.LazyBatchNorm1d`.

    With its first input the layer becomes a `BatchNorm1d`.

    Parameters
    ----------
    eps : float, default 1e-5
        Added to the variance inside the square root.
    momentum : float or None, default 0.1
        The weight of a new batch in the running statistics; None for their plain average over the batches.
    affine : bool, default True
        Whether the layer has a weight and a bias.
    track_running_stats : bool, default True
        Whether the layer has running statistics. Without them, evaluation uses those of its own batch.
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

    See Also
    --------
    BatchNorm1d : What the layer computes and raises.

    Examples
    --------
    >>> import torch
    >>> import xhat.torch as xt
    >>> layer = xt.LazyBatchNorm1d()
    >>> y = layer(torch.ones(2, 3, 4))
    >>> type(layer).__name__, layer.num_features
    ('BatchNorm1d', 3)
    """

    cls_to_become = BatchNorm1d


class LazyBatchNorm2d(_Lazy, nn.LazyBatchNorm2d):
    """`BatchNorm2d` that takes its number of channels from the first input, as `torch.nn.LazyBatchNorm2d`.

    With its first input the layer becomes a `BatchNorm2d`.

    Parameters
    ----------
    eps : float, default 1e-5
        Added to the variance inside the square root.
    momentum : float or None, default 0.1
        The weight of a new batch in the running statistics; None for their plain average over the batches.
    affine : bool, default True
        Whether the layer has a weight and a bias.
    track_running_stats : bool, default True
        Whether the layer has running statistics. Without them, evaluation uses those of its own batch.
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

    See Also
    --------
    BatchNorm2d : What the layer computes and raises.

    Examples
    --------
    >>> import torch
    >>> import xhat.torch as xt
    >>> layer = xt.LazyBatchNorm2d()
    >>> y = layer(torch.ones(2, 3, 4, 4))
    >>> type(layer).__name__, layer.num_features
    ('BatchNorm2d', 3)
    """

    cls_to_become = BatchNorm2d


class LazyBatchNorm3d(_Lazy, nn.LazyBatchNorm3d):
    """`BatchNorm3d` that takes its number of channels from the first input, as `torch.nn.LazyBatchNorm3d`.

    With its first input the layer becomes a `BatchNorm3d`.

    Parameters
    ----------
    eps : float, default 1e-5
        Added to the variance inside the square root.
    momentum : float or None, default 0.1
        The weight of a new batch in the running statistics; None for their plain average over the batches.
    affine : bool, default True
        Whether the layer has a weight and a bias.
    track_running_stats : bool, default True
        Whether the layer has running statistics. Without them, evaluation uses those of its own batch.
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

    See Also
    --------
    BatchNorm3d : What the layer computes and raises.

    Examples
    --------
    >>> import torch
    >>> import xhat.torch as xt
    >>> layer = xt.LazyBatchNorm3d()
    >>> y = layer(torch.ones(2, 3, 4, 4, 4))
    >>> type(layer).__name__, layer.num_features
    ('BatchNorm3d', 3)
    """

    cls_to_become = BatchNorm3d
