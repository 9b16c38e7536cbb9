"""`diagnose`: check, guard, measure, judge. Each of these is a file of its own."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

from torch import nn

from xhat.errors import ArgumentError
from xhat.torch.doctor.attribution import attribute
from xhat.torch.doctor.batches import Batches
from xhat.torch.doctor.diagnosis import Diagnosis
from xhat.torch.doctor.findings import by_severity
from xhat.torch.doctor.graph import norms_of
from xhat.torch.doctor.guard import guarded
from xhat.torch.doctor.layers import Layer, batch_norms, checked, unwrapped
from xhat.torch.doctor.measure import Runner, measure
from xhat.torch.doctor.measured import MODES, Measured
from xhat.torch.doctor.ranks import header_of
from xhat.torch.doctor.rules import judged
from xhat.torch.doctor.trials import try_remedies
from xhat.torch.progress import with_progress
from xhat.torch.recalibrate import call, in_lockstep
from xhat.torch.sync import frames, groups
from xhat.torch.sync.layer import SyncBatchNorm

__all__ = ["diagnose"]


def diagnose(
    model: nn.Module,
    batches: Iterable[Any],
    loss: Callable[[Any, Any], Any] | None = None,
    *,
    forward: Callable[[nn.Module, Any], Any] | None = None,
    optimizer: Any = None,
    layers: Iterable[str] | None = None,
    progress: bool = True,
    process_group: Any = None,
) -> Diagnosis:
    """Find what is wrong with a model's batch norms, prove it on batches, and leave everything as it was.

    The model runs in four modes on every batch: in evaluation; with batch norms that normalize by the batch; with the
    exact moments of all these batches as running statistics; and as in training. The loss in these modes tells whether
    the running statistics, the batches or dropout are at fault, or not batch norm at all.

    Parameters
    ----------
    model : torch.nn.Module
        The model.
    batches : iterable
        What the model takes, consumed once. Some ten to fifty batches of the data on which the model is bad are enough.
        Batches that do not come from a list or tuple are kept in a temporary folder (or in memory, if they can't be
        pickled), since two of the modes need all of them first.
    loss : callable, optional
        ``loss(output, batch)``, one number. Without it, outputs are compared with those of mode "batch".
    forward : callable, optional
        How the model is called, ``forward(model, batch)``. The default is that of `recalibrate`.
    optimizer : torch.optim.Optimizer, optional
        With it, weight decay is judged too.
    layers : iterable of str, optional
        The paths of the layers to look at; by default all.
    progress : bool, default True
        Whether to show a progress bar on stderr.
    process_group : torch.distributed.ProcessGroup, optional
        The ranks, all of which call this function, each with its own batches.

    Returns
    -------
    Diagnosis
        The findings with their proof. Print it.

    Raises
    ------
    ArgumentError
        If there are no batches, if the model raises, if the loss is not a number, and if the model has lazy layers
        without a shape or tensors without data.

    See Also
    --------
    watch : What only shows while a model trains.
    examine : What a checkpoint shows, without a model.

    Notes
    -----
    Buffers, parameters, gradients, modes, hooks, random states and settings of torch are bit for bit as before, also
    if the model, the loss or the batches raise.

    Examples
    --------
    >>> import torch
    >>> import xhat.torch as xt
    >>> _ = torch.manual_seed(0)
    >>> from torch import nn
    >>> model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1)).eval()
    >>> batches = [torch.randn(16, 2) + 5 for _ in range(4)]
    >>> d = xt.diagnose(model, batches, progress=False)
    >>> d.findings[0].cause, d.findings[0].severity
    ('statistics-never-updated', 'harmful')
    >>> print(d.findings[0].remedy)
    Recalibrate, and save and copy the buffers with the parameters.
    """
    model = unwrapped(model)
    _check(loss, forward, optimizer, layers)
    found = _chosen(batch_norms(model), layers)
    checked(model, found)
    group = groups.group_name(process_group)
    measured = Measured(
        model, found, model.training, optimizer,
        graph=norms_of(model), group=group, ranks=groups.world_size(group),
    )  # fmt: skip
    if found or measured.graph:
        _measure(measured, batches, forward, loss, progress)
    findings, unjudged = judged(measured)
    return Diagnosis(
        type(model).__name__, measured.quantity, measured.count,
        {mode: measured.mean(mode) for mode in MODES} if measured.count else dict.fromkeys(MODES),
        [_row(measured, layer) for layer in measured.layers], by_severity(findings), unjudged, measured,
    )  # fmt: skip


def _check(loss: Any, forward: Any, optimizer: Any, layers: Any) -> None:
    """Raises ArgumentError for options of another kind."""
    for name, value, signature in (("loss", loss, "(output, batch)"), ("forward", forward, "(model, batch)")):
        if value is not None and not callable(value):
            raise ArgumentError(
                f"diagnose: {name} is {type(value).__name__}, expected a function {name}{signature}."
            )
    if optimizer is not None and not hasattr(optimizer, "param_groups"):
        raise ArgumentError(
            f"diagnose: optimizer is {type(optimizer).__name__}, expected a torch.optim.Optimizer."
        )
    if layers is not None and not isinstance(layers, Iterable):
        raise ArgumentError(f"diagnose: layers is {type(layers).__name__}, expected paths of batch norms.")


def _chosen(found: list[Layer], paths: Iterable[str] | None) -> list[Layer]:
    if paths is None:
        return found
    wanted = [paths] if isinstance(paths, str) else list(paths)
    known = {layer.path for layer in found}
    for path in wanted:
        if path not in known:
            raise ArgumentError(
                f"diagnose: layers has {path!r}, which is no batch norm of the model. It has "
                f"{', '.join(sorted(known)[:5]) or 'none'}{', ...' if len(known) > 5 else ''}."
            )
    return [layer for layer in found if layer.path in wanted]


def _measure(measured: Measured, batches: Iterable[Any], forward: Any, loss: Any, progress: bool) -> None:
    """All passes over the batches, in a guard."""
    kept, group, alone = Batches(batches), measured.group, measured.ranks == 1
    header = header_of(measured)
    announced = nullcontext() if alone else frames.announce_failure(header, group, nested=True)
    progress = progress and (alone or groups.rank(group) == 0)
    try:
        with announced, guarded(measured.model) as state:
            runner = Runner(measured, state, forward or _call, loss)

            def again(what: str) -> Iterable[Any]:
                return with_progress(kept, f"diagnose: {what}", progress)

            first = with_progress(kept.first(), "diagnose: four modes", progress)
            exchanging = any(isinstance(x.module, (SyncBatchNorm, nn.SyncBatchNorm)) for x in measured.layers)
            measure(
                runner, first if alone or not exchanging else in_lockstep(first, group, "diagnose"), again
            )
            attribute(runner, again)
            try_remedies(runner, again)
    finally:
        kept.close()


def _call(model: nn.Module, batch: Any) -> Any:
    return call(model, batch, "diagnose")


def _row(measured: Measured, layer: Layer) -> dict[str, Any]:
    """What a diagnosis reports of one layer."""
    calls = measured.tap(layer, "evaluation").calls / measured.count
    numbers = measured.signals(layer)._asdict() | {
        "left": layer.left,
        "repair": measured.swapped.get(layer.path),
    }
    return {
        "layer": layer.path,
        "class": type(layer.module).__name__,
        "channels": layer.channels,
        "calls": calls,
        "training": layer.training,
        "frozen": layer.fixed,
    } | {name: None if value is None or value != value else value for name, value in numbers.items()}
