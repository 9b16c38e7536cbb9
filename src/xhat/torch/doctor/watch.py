"""`watch`: what only shows while a model trains. It counts and copies; `watched` judges, and `seen` has the hooks.

A step costs one call of a hook a layer, one pass over version counters, and one reduction of small tensors, which is
read some steps later: a device is not waited for in every step.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from xhat.errors import ArgumentError
from xhat.torch.doctor.diagnosis import Diagnosis
from xhat.torch.doctor.findings import Finding
from xhat.torch.doctor.finite import FirstNotFinite
from xhat.torch.doctor.layers import Layer, batch_norms, unwrapped
from xhat.torch.doctor.observed import Observed, row
from xhat.torch.doctor.seen import Hook, Seen
from xhat.torch.doctor.watched import judge, unseen

__all__ = ["Copy", "Watch", "watch"]

# The statistics are copied once in so many steps, to see how fast they move.
STEPS_BETWEEN_COPIES = 10


class Copy(NamedTuple):
    """The running mean and variance of each layer after a step, and how many batches it had counted."""

    step: int
    statistics: dict[str, tuple[Tensor, Tensor, Tensor]]


def watch(model: nn.Module, optimizer: Any = None) -> "Watch":
    """Watch the batch norms of a model while it trains, for what only shows over time.

    The result is a context manager. Its ``findings`` and ``diagnosis`` hold what was seen so far, within the block and
    after it; print it to see them.

    Parameters
    ----------
    model : torch.nn.Module
        The model that is trained.
    optimizer : torch.optim.Optimizer or iterable of these, optional
        A step is a call of its ``step()``. Without one, a step is seen when a parameter has changed between two forward
        passes of the model.

    Returns
    -------
    Watch
        A context manager, for one use.

    Raises
    ------
    ArgumentError
        If the model is not a module, if it has no batch norm whose running statistics can move, if the optimizer is
        not one, or if a watch is used a second time.

    See Also
    --------
    diagnose : What shows on a few batches, with proof.

    Notes
    -----
    A watch finds layers that stay in evaluation mode while the weights move, statistics that move while the parameters
    are frozen or in a forward pass without gradients, statistics that trail the weights, the first layer that is not
    finite and its step, and layers that are called more than once in a forward pass. ``diagnosis.not_judged`` has what
    could not be seen, such as calls in a compiled model.

    After the block, the model and the optimizer have no hook any more, also if an exception is raised, which is passed
    on.

    Examples
    --------
    >>> import torch
    >>> import xhat.torch as xt
    >>> model = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Linear(2, 1))
    >>> x = torch.tensor([[1.0, 2.0], [3.0, 5.0], [4.0, 4.0]])
    >>> with xt.watch(model) as w:  # xt.watch(model, optimizer) where there is one
    ...     for _ in range(4):
    ...         model(x).sum().backward()
    ...         with torch.no_grad():
    ...             model[1].bias -= 0.1 * model[1].bias.grad
    >>> w.steps, w.findings[0].cause
    (4, 'statistics-not-converged')
    """
    return Watch(model, optimizer)


class Watch(AbstractContextManager["Watch"]):
    """What a `watch` has seen.

    Attributes
    ----------
    layers : list
        One object for each batch norm whose statistics can move; ``called`` has them in the order of their first call.
    steps : int
        The number of optimizer steps. In ``evaluating`` of them the model was in evaluation mode, since
        ``evaluating_from``.
    forwards : int
        The number of forward passes of the model with gradients.
    first : object
        The first step after which a running variance or a gamma was not finite.
    copies : deque
        The last three copies of the statistics.
    """

    def __init__(self, model: nn.Module, optimizer: Any = None) -> None:
        if not isinstance(model, nn.Module):
            raise ArgumentError(f"watch: model is {type(model).__name__}, expected a torch.nn.Module.")
        self.model, self.optimizers = model, _optimizers(optimizer)
        self.steps = self.forwards = self.evaluating = self.evaluating_from = 0
        self.inside = self.blind = False
        self.training = model.training
        self.called: list[Seen] = []
        self.layers: list[Seen] = []
        self.first = FirstNotFinite()
        self.copies: deque[Copy] = deque(maxlen=3)
        self._blind_moves: list[int] = []
        self._forwards_at_step = 0
        self._hooks: ExitStack | None = None

    # --------------------------------------------------------------------------------------------------- the block

    def __enter__(self) -> Self:
        if self._hooks is not None:
            raise ArgumentError(
                "watch: this watch has been used, expected a new one: with xt.watch(model) as w: ..."
            )
        self.layers = [Seen(layer, self) for layer in _moving(self.model)]
        self._parameters = list(self.model.parameters())
        self._versions = self._parameter_versions()
        self._look(0)
        with ExitStack() as hooks:
            for seen in self.layers:
                hooks.callback(seen.module.register_forward_pre_hook(seen).remove)
            hooks.callback(
                self.model.register_forward_pre_hook(Hook(self._before_forward), prepend=True).remove
            )
            hooks.callback(
                self.model.register_forward_hook(Hook(self._after_forward), always_call=True).remove
            )
            for optimizer in self.optimizers:
                hooks.callback(optimizer.register_step_post_hook(Hook(self._after_step)).remove)
            self._hooks = hooks.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._hooks is not None
        self._hooks.close()
        if not self.optimizers:
            self._find_step()
        if self.forwards != self._forwards_at_step:  # a forward pass that no step followed, because it raised
            self._look(self.steps + 1)

    # ----------------------------------------------------------------------------------------------------- the hooks

    def _before_forward(self, given: Sequence[Any]) -> None:
        # Reentrant checkpointing turns gradients off for a pass that it repeats: its inputs require them.
        repeated = any(isinstance(x, Tensor) and x.requires_grad for x in given)
        if not torch.is_grad_enabled() and not repeated:
            self.blind, self._blind_moves = True, [seen.moves() for seen in self.layers]
            return
        if not self.optimizers:
            self._find_step()
        self.forwards += 1
        self.inside, self.training = True, self.model.training

    def _after_forward(self, _: Any = None) -> None:
        if self.blind:
            for seen, moves in zip(self.layers, self._blind_moves, strict=True):
                seen.after_blind_forward(moves)
        self.inside = self.blind = False

    def _find_step(self) -> None:
        """A step was taken if a parameter has changed."""
        versions = self._parameter_versions()
        if versions != self._versions:
            self._versions = versions
            self._after_step()

    def _after_step(self, _: Any = None) -> None:
        self.steps += 1
        if self.forwards == self._forwards_at_step:  # the loop calls parts of the model
            self.training = self.model.training
        self._forwards_at_step = self.forwards
        if not self.training:
            self.evaluating += 1
            self.evaluating_from = self.evaluating_from or self.steps
        else:
            self.evaluating_from = 0
        for seen in self.layers:
            seen.after_step(self.steps)
        self._look(self.steps)

    def _parameter_versions(self) -> int:
        known = [p for p in self._parameters if not isinstance(p, nn.parameter.UninitializedParameter)]
        return sum(p._version for p in known if not p.is_inference())

    # ------------------------------------------------------------------------------------------------------ the tensors

    def _look(self, step: int) -> None:
        """Looks at what is finite, and copies the statistics from time to time."""
        self.first.look(step, (named for seen in self.layers for named in seen.tensors()))
        if step % STEPS_BETWEEN_COPIES == 0:
            copied = {seen.path: found for seen in self.layers if (found := _copied(seen))}
            self.copies.append(Copy(step, copied))

    # ---------------------------------------------------------------------------------------------------- the findings

    @property
    def findings(self) -> list[Finding]:
        """What was found so far, the most harmful first."""
        return self.diagnosis.findings

    @property
    def diagnosis(self) -> Diagnosis:
        """The findings, and what could not be judged, as a `Diagnosis`."""
        self.first.read()
        rows = [
            row(
                seen.path, type(seen.module).__name__, len(found[0]), calls=seen.most or None,
                training=seen.module.training,
            )
            for seen in self.layers if (found := seen.statistics())
        ]  # fmt: skip
        return Observed.of(type(unwrapped(self.model)).__name__, rows, judge(self), unseen(self))

    def __str__(self) -> str:
        return f"{self.steps} steps of {self.diagnosis}" if self.layers else "watch: not begun"


def _can_move(layer: Layer) -> bool:
    """Whether the statistics move in training mode, whatever the mode is now."""
    constant = layer.fixed and not layer.held
    return layer.tracks and not constant and not getattr(layer.module, "frozen_statistics", False)


def _moving(model: nn.Module) -> list[Layer]:
    """The batch norms whose running statistics can move. Raises ArgumentError if there are none, or without data."""
    layers = [layer for layer in batch_norms(unwrapped(model)) if _can_move(layer)]
    if not layers:
        raise ArgumentError(
            "watch: the model has no batch norm whose running statistics can move, expected at least one."
        )
    on_meta = [layer.path for layer in layers if layer.module.running_var.is_meta]
    if on_meta:
        raise ArgumentError(
            f"watch: layer {on_meta[0]!r} is on the meta device, expected one with data. Load the model's "
            "weights first."
        )
    return layers


def _copied(seen: Seen) -> tuple[Tensor, Tensor, Tensor] | None:
    found, counter = seen.statistics(), seen.module._buffers.get("num_batches_tracked")
    if found is None:
        return None
    batches = torch.tensor(seen.learning) if counter is None else counter.clone()
    return found[0].detach().clone(), found[1].detach().clone(), batches


def _optimizers(given: Any) -> list[Any]:
    """One optimizer, several or none, as a list."""
    found = [] if given is None else [given] if isinstance(given, torch.optim.Optimizer) else given
    found = list(found) if isinstance(found, Iterable) and not isinstance(found, str) else [found]
    for optimizer in found:
        if not isinstance(optimizer, torch.optim.Optimizer):
            raise ArgumentError(
                f"watch: optimizer is {type(optimizer).__name__}, expected a torch.optim.Optimizer, several, or None."
            )
    return found
