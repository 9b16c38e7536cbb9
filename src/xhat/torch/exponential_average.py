"""The exponential average of a model while it trains, with running statistics that are merged.

How state dicts are averaged is in `average`.
"""

from collections.abc import Callable
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from xhat import equations
from xhat.checks import shown
from xhat.errors import ArgumentError
from xhat.torch.checkpoints import STATISTICS, batch_norms_among
from xhat.torch.recalibrate import unwrapped

__all__ = ["ExponentialAverage"]


class ExponentialAverage(AveragedModel):
    """The exponential average of a model while it trains, with its running statistics.

    The share of a step falls by the factor d, the decay, with each later step::

        parameters      p = d p + (1 - d) p_model
        running_mean    mu = d mu + (1 - d) mu_model
        running_var     var = d var + (1 - d) var_model + d (1 - d) (mu - mu_model)^2

    The last term is the variance between the means, as in `average`. Integers, such as num_batches_tracked, are the
    model's; other floating-point buffers are averaged like parameters.

    Parameters
    ----------
    model : torch.nn.Module
        The model as it is trained. Wrappers (DistributedDataParallel, torch.compile) are left out.
    decay : float or callable, default 0.999
        The decay d from 0 to 1, or a function of the number of updates so far, such as ``lambda n: min(0.999, (1 + n)
        / (10 + n))``.
    device : torch.device, optional
        Where the average is kept; by default where the model is.
    dtype : torch.dtype, optional
        The dtype of the average; by default that of the model. A model in 16 bits needs torch.float32: steps of 1 - d
        are lost in 16 bits.

    Attributes
    ----------
    module : torch.nn.Module
        The averaged model, in evaluation mode.
    n_averaged : torch.Tensor
        The number of updates.

    Raises
    ------
    ArgumentError
        If the decay is not from 0 to 1, if 16 bits would lose the steps, and if a model's tensors are not those of the
        average; then nothing has changed.

    See Also
    --------
    average : The average of several models.
    recalibrate : The statistics of the averaged parameters.

    Notes
    -----
    The class takes the place of `torch.optim.swa_utils.AveragedModel`, whose subclass it is, with the same state_dict,
    and of timm's ModelEmaV3, whose state_dict it loads: ``update_parameters(model)`` and ``update(model)`` are the
    same, and the first call copies the model, as timm's does where it is given the step.

    These statistics follow those of the models that were averaged, while the averaged parameters have statistics of
    their own. ``xhat.torch.recalibrate(average, batches)`` computes them; docs/beyond-training.md has both measured.

    Examples
    --------
    >>> import torch
    >>> import xhat.torch as xt
    >>> model = torch.nn.Sequential(xt.BatchNorm1d(1))
    >>> average = xt.ExponentialAverage(model, decay=0.5)
    >>> average.update(model)
    >>> y = model(torch.tensor([[1.0], [2.0], [6.0]]))  # 0.3 and 1.6
    >>> average.update(model)
    >>> average.module[0].running_mean, average.module[0].running_var
    (tensor([0.1500]), tensor([1.3225]))
    """

    def __init__(
        self,
        model: nn.Module,
        decay: float | Callable[[int], float] = 0.999,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(unwrapped(model, "ExponentialAverage"), device)
        if dtype is not None:
            self.module.to(dtype=dtype)
        self.decay = decay
        self.eval()
        _check_digits(self.module, self._decay_now())

    def _decay_now(self) -> float:
        """The decay of the next update."""
        decay: Any = self.decay(int(self.n_averaged)) if callable(self.decay) else self.decay
        if not (isinstance(decay, float | int) and 0 <= decay <= 1):
            raise ArgumentError(
                f"ExponentialAverage: decay is {decay!r}, expected a number from 0 to 1 or a function of this result."
            )
        return float(decay)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move the average one step towards this model.

        Parameters
        ----------
        model : torch.nn.Module
            The model that the average was made of, after a step of training.
        """
        mine, theirs = _tensors(self.module), _tensors(unwrapped(model, "ExponentialAverage"))
        _check_same(mine, theirs)
        decay = self._decay_now() if self.n_averaged else 0.0
        merged = _merged(mine, theirs, decay) if decay else {}
        parameters = {name for name, _ in self.module.named_parameters()}
        olds: list[Any] = []
        news: list[Any] = []
        for name, old in mine.items():
            new = theirs[name].detach().to(old)
            if name in merged:
                old.copy_(merged[name])
            elif not decay or not (old.is_floating_point() or old.is_complex()):
                old.copy_(new)
            elif name in parameters:
                olds.append(old.detach())
                news.append(new)
            else:  # infinite constants, as in attention masks, have no difference
                old.copy_(torch.where(old == new, old, equations.track(old, new, 1 - decay)))
        if olds:
            get_ema_multi_avg_fn(decay)(olds, news, self.n_averaged)
        self.n_averaged += 1

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        """torch's; a state dict of timm's has no number of updates, and is an average that goes on."""
        state_dict.setdefault(f"{prefix}n_averaged", torch.ones_like(self.n_averaged))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def update(self, model: nn.Module, step: int | None = None) -> None:
        """Move the average one step towards this model: `update_parameters` by timm's name.

        Parameters
        ----------
        model : torch.nn.Module
            The model that the average was made of, after a step of training.
        step : int, optional
            Not used: the decay depends on the number of updates.
        """
        self.update_parameters(model)

    @torch.no_grad()
    def set(self, model: nn.Module) -> None:
        """Make the average a copy of this model, as timm's ``set`` does.

        Parameters
        ----------
        model : torch.nn.Module
            The model that the average was made of.
        """
        mine, theirs = _tensors(self.module), _tensors(unwrapped(model, "ExponentialAverage"))
        _check_same(mine, theirs)
        for name, old in mine.items():
            old.copy_(theirs[name])


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by their names."""
    return dict(chain(model.named_parameters(), model.named_buffers()))


def _check_same(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    for name in dict.fromkeys((*mine, *theirs)):
        if name not in mine or name not in theirs:
            raise ArgumentError(
                f"ExponentialAverage: {name!r} is in the {'average' if name in mine else 'model'} alone, expected the "
                "same parameters and buffers in both. Make the average of the model as it is trained."
            )
        if mine[name].shape != theirs[name].shape:
            raise ArgumentError(
                f"ExponentialAverage: {name!r} has shape {shown(theirs[name].shape)} in the model, expected "
                f"{shown(mine[name].shape)}, its shape in the average."
            )


def _check_digits(model: nn.Module, decay: float) -> None:
    """Raises ArgumentError if half a last place of a parameter is more than a step of the average."""
    for name, p in model.named_parameters():
        if p.is_floating_point() and 0 < 1 - decay < torch.finfo(p.dtype).eps / 2:
            raise ArgumentError(
                f"ExponentialAverage: {name!r} is {p.dtype}, in which steps of 1 - decay = {1 - decay:.2g} are lost, "
                "expected a dtype with more digits. Pass dtype=torch.float32."
            )


def _merged(mine: dict[str, Tensor], theirs: dict[str, Tensor], decay: float) -> dict[str, Tensor]:
    """The running statistics of every batch norm: those of the average count decay, and the model's 1 - decay."""
    found = {}
    for prefix in batch_norms_among(mine):
        mean, var = (f"{prefix}{name}" for name in STATISTICS[:2])
        new_mean, new_var = (theirs[name].detach().to(mine[name]) for name in (mean, var))
        one, two = (decay, mine[mean], decay * mine[var]), (1 - decay, new_mean, (1 - decay) * new_var)
        m, found[mean], m2 = equations.merge(*one, *two)
        found[var] = equations.variance(m2, m)
    return found
