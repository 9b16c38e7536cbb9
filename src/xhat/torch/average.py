"""Many models made one: parameters averaged, running statistics merged.

Where state dicts come from is in `checkpoints`; how moments are merged is in `sync.merge`.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xhat import equations
from xhat.checks import check_correction, shown
from xhat.errors import ArgumentError
from xhat.torch.checkpoints import STATISTICS, Source, batch_norms_among, state_dict_of
from xhat.torch.sync.header import Array
from xhat.torch.sync.merge import merged

__all__ = ["average"]

State = Mapping[str, Any]


@torch.no_grad()
def average(
    models_or_state_dicts: Iterable[Source],
    weights: Sequence[float] | None = None,
    counts: Sequence[float] | Sequence[Mapping[str, float]] | None = None,
    *,
    correction: int = 0,
    partial: bool = False,
) -> dict[str, Any]:
    """Return the state dict of the average of several models: soups, weight averaging, federated rounds, shards.

    ::

        parameters      p = sum of w_k p_k / sum of w_k
        running_mean    mu = sum of n_k mu_k / n                     n = sum of n_k
        running_var     sum of [(n_k - c) var_k + n_k (mu_k - mu)^2] / (n - c)

    The second term of the variance is that between the models' means; an average of variances lacks it. Everything is
    computed in float64 and rounded once.

    Parameters
    ----------
    models_or_state_dicts : iterable
        Modules, state dicts, and paths of files (``.safetensors``, else those of `torch.save`), which are mapped into
        memory one tensor at a time, so that many large files need the memory of one. No module is changed.
    weights : sequence of float, optional
        w_k >= 0, for the parameters; by default all the same.
    counts : sequence of float or sequence of mappings, optional
        n_k >= 0, for the statistics: how many values per channel they are of, a number for each model, or a mapping
        from the layer's path to a number. By default n_k = w_k, so that the statistics are those of inputs that come
        from model k's data with a probability of w_k. A layer with num_batches_tracked = 0, mean 0 and variance 1
        counts 0.
    correction : {0, 1}, default 0
        c; what the given variances divide by is n_k - c. `recalibrate` and samples in proportion to the counts have c
        = 0, and the result is exact. For c = 1 (momentum=1 and torch's convention), the counts must be values per
        channel, not samples or weights. Exponential averages of many batches are the moments of no data; c = 0 then.
    partial : bool, default False
        Whether models may lack names. Each name is averaged over those that have it.

    Returns
    -------
    dict of str to torch.Tensor
        The state dict, in the dtypes of the first model and on its devices.

    Raises
    ------
    ArgumentError
        If names, shapes, dtypes or integers differ, if weights or counts have no valid values, and if a file can't be
        read.

    See Also
    --------
    ExponentialAverage : The average of one model while it trains.

    Notes
    -----
    A state dict has no classes: names that end in running_mean and running_var with the same prefix are a batch norm's.
    Integers that are scalars, such as num_batches_tracked, become the largest one; other integers and bools have to be
    equal. Floating-point buffers are averaged like parameters, and so are the learned parameters of any layer; elements
    that are equal in all, such as -inf in an attention mask, stay. What is not a tensor comes from the first model.

    References
    ----------
    Chan, Golub and LeVeque, "Updating Formulae and a Pairwise Algorithm for Computing Sample Variances", 1979.

    Examples
    --------
    >>> import torch
    >>> import xhat.torch as xt
    >>> a, b = xt.BatchNorm1d(1, momentum=1), xt.BatchNorm1d(1, momentum=1)
    >>> ya, yb = a(torch.tensor([[0.0], [2.0]])), b(torch.tensor([[4.0], [6.0]]))
    >>> state = xt.average([a, b], counts=[2, 2], correction=1)
    >>> state["running_mean"], state["running_var"]  # those of 0, 2, 4 and 6
    (tensor([3.]), tensor([6.6667]))
    """
    if isinstance(models_or_state_dicts, str | Mapping | torch.nn.Module):
        raise ArgumentError(
            f"average: got one {type(models_or_state_dicts).__name__}, expected a list of models, state dicts or paths."
        )
    check_correction(correction, "average")
    states = [state_dict_of(source, "average") for source in models_or_state_dicts]
    if not states:
        raise ArgumentError("average: the list is empty, expected one model or more.")
    w = _checked("weights", weights if weights is not None else [1.0] * len(states), len(states))
    names = _names(states, partial)
    result: dict[str, Any] = OrderedDict.fromkeys(names)
    for prefix in batch_norms_among(names):
        result |= _statistics(
            prefix, states, w if counts is None else _of_layer(counts, prefix, states), correction
        )
    for name in names:
        if result[name] is None:
            result[name] = _averaged(name, states, w)
    if hasattr(states[0], "_metadata"):  # the versions of the modules' formats
        result._metadata = states[0]._metadata  # type: ignore[attr-defined]
    return result


# ---------------------------------------------------------------------------------------------------- what is given


def _checked(what: str, values: Any, n: int) -> Array:
    """Weights or counts as an array. Raises ArgumentError."""
    try:
        found = np.asarray([float(v) for v in values])
    except (TypeError, ValueError):
        raise ArgumentError(f"average: {what} are {values!r}, expected one number for each model.") from None
    if len(found) != n:
        raise ArgumentError(f"average: there are {len(found)} {what} for {n} models, expected one for each.")
    if not (np.isfinite(found).all() and (found >= 0).all() and found.sum() > 0):
        raise ArgumentError(
            f"average: {what} are {found.tolist()}, expected finite numbers of at least 0, one of them above 0."
        )
    return found


def _of_layer(counts: Any, prefix: str, states: list[State]) -> Array:
    """The counts for the layer with this prefix, of the models that have it; 0 for the others."""
    path, numbers = prefix.removesuffix("."), []
    for k, count in enumerate(counts):
        if isinstance(count, Mapping):
            has_it = k < len(states) and f"{prefix}running_mean" in states[k]
            if has_it and path not in count:
                raise ArgumentError(
                    f"average: counts of model {k} has no item {path!r}, expected one for every batch norm."
                )
            count = count.get(path, 0)
        numbers.append(count)
    return _checked("counts", numbers, len(states))


def _names(states: list[State], partial: bool) -> list[str]:
    """The names of all models, in the order of the first one. Raises ArgumentError if a model lacks some."""
    names = list(dict.fromkeys(name for state in states for name in state))
    for k, state in enumerate(states):
        missing = [name for name in names if name not in state]
        if missing and not partial:
            more = f" and {len(missing) - 1} more names" if len(missing) > 1 else ""
            raise ArgumentError(
                f"average: model {k} lacks {missing[0]!r}{more}, expected the names of the others. Pass partial=True "
                "to average each name over the models that have it."
            )
    return names


def _alike(name: str, states: list[State]) -> list[tuple[int, Any]]:
    """The models that have this name, with their values. Raises ArgumentError if shapes or dtypes differ."""
    found = [(k, state[name]) for k, state in enumerate(states) if name in state]
    first, value = found[0]
    for k, other in found[1:]:
        if isinstance(value, Tensor) is not isinstance(other, Tensor):
            raise ArgumentError(f"average: {name!r} is a tensor in only one of models {first} and {k}.")
        if not isinstance(value, Tensor):
            continue
        shapes, dtypes = (shown(value.shape), shown(other.shape)), (value.dtype, other.dtype)
        for what, (a, b) in (("shape", shapes), ("dtype", dtypes)):
            if a != b:
                raise ArgumentError(
                    f"average: {name!r} has {what} {a} in model {first} and {b} in model {k}, expected the same."
                )
    return found


# ------------------------------------------------------------------------------------------------ what is computed


def _averaged(name: str, states: list[State], weights: Array) -> Any:
    """What has this name in the average."""
    found = _alike(name, states)
    value = found[0][1]
    if not isinstance(value, Tensor):
        return value
    if not (value.is_floating_point() or value.is_complex()):
        return _agreed(name, found)
    wide = torch.promote_types(value.dtype, torch.float64)
    device = "cpu" if value.is_mps else value.device  # MPS has no float64
    total, mean = 0.0, torch.zeros((), dtype=wide, device=device)
    for share, (_, t) in zip(_shares(weights, [k for k, _ in found]), found, strict=True):
        if share:
            before, total = total, total + share
            t = t.detach().to(device, wide)
            # p += (p_k - p) w_k / (sum so far); where both are infinite, their difference is NaN
            mean = torch.where(mean == t, mean, equations.track(mean, t, share / total)) if before else t
    return mean.to(value.device, value.dtype, copy=True)


def _shares(weights: Array, having: list[int]) -> Array:
    """The weights of the models that have a name; 1 for each if these are all 0."""
    found: Array = weights[having]
    return found if found.any() else np.ones(len(having))


def _agreed(name: str, found: list[tuple[int, Tensor]]) -> Tensor:
    """The integers or bools that all have, or the largest scalar. Raises ArgumentError."""
    first, value = found[0]
    for k, other in found[1:]:
        other = other.to(value.device)
        if value.dim() == 0 and value.dtype != torch.bool:
            value = torch.maximum(value, other)
        elif not torch.equal(value, other):
            raise ArgumentError(
                f"average: {name!r} holds {value.dtype} that differ between models {first} and {k}, expected equal "
                "ones: they have no average. Remove the name from the state dicts first."
            )
    return value.clone()


def _statistics(prefix: str, states: list[State], counts: Array, correction: int) -> dict[str, Tensor]:
    """The running statistics of the layer with this prefix, merged."""
    names = [f"{prefix}{name}" for name in STATISTICS[:2]]
    having = [k for k, state in enumerate(states) if all(name in state for name in names)]
    found = [[t for k, t in _alike(name, states) if k in having] for name in names]
    mean, var = (np.stack([t.detach().cpu().double().numpy() for t in values]) for values in found)
    m = _shares(counts, having)
    trained = m * [_has_seen_batches(states[k], prefix) for k in having]
    m = trained if trained.any() else m
    if not (m[m > 0] > correction).all():
        raise ArgumentError(
            f"average: a count of layer {prefix.removesuffix('.')!r} is {m[m > 0].min():g}, expected more than "
            f"correction={correction}. Pass counts, the numbers of values per channel, or correction=0."
        )
    m = m.reshape(-1, 1)
    all_m, merged_mean, m2 = merged(m, mean, var * (m - correction))
    results = (merged_mean, equations.variance(m2, all_m, correction))
    return {name: torch.from_numpy(r).to(t[0]) for name, r, t in zip(names, results, found, strict=True)}


def _has_seen_batches(state: State, prefix: str) -> bool:
    """Whether the statistics are those of some data, and not those of a layer that was just made."""
    mean, var, batches = (state.get(f"{prefix}{name}") for name in STATISTICS)
    made = batches is not None and not batches and not mean.any() and bool((var == 1).all())  # type: ignore[union-attr]
    return not made
