"""What a watch counts of one layer, and the hooks by which it does. Nothing is judged here."""

from collections.abc import Callable, Iterator
from typing import Any, Protocol

from torch import Tensor, nn
from torch.compiler import is_compiling
from torch.nn.parameter import is_lazy

from xhat.torch.doctor.layers import Layer
from xhat.torch.internals import recomputing

__all__ = ["Hook", "Pass", "Seen"]


class Pass(Protocol):
    """What a layer's hook reads of the watch.

    forwards   the model's forward passes with gradients so far
    inside     whether one is running
    blind      whether one without gradients is running, which is counted by `Seen.after_blind_forward` alone
    training   whether the model was in training mode in the last one with gradients
    layers     the layers that have been called, in the order of their first call
    """

    forwards: int
    inside: bool
    blind: bool
    training: bool
    called: list["Seen"]


class Seen:
    """What was seen of one layer. It is the layer's hook as well.

    calls      calls outside of passes without gradients; `most` is the largest number in training mode in one forward
               pass of the model, and `repeated` the number of passes with more than one
    moved      steps in which the statistics moved; in `frozen` of them, no parameter of the layer required a gradient
    stood      steps in which they did not, with the model in training mode, and `stood_from` the first of the last row
    blind      forward passes without gradients that moved them
    tracked    num_batches_tracked at the beginning, None without a counter
    """

    def __init__(self, layer: Layer, watch: Pass) -> None:
        self.path, self.module, self.tracked, self._watch = layer.path, layer.module, layer.tracked, watch
        self.calls = self.learning = self.most = self.repeated = 0
        self.moved = self.frozen = self.stood = self.stood_from = self.blind = 0
        self._forward = self._in_forward = 0  # the pass of the last call, and the calls in it
        self._names = f"{layer.path}.running_var", f"{layer.path}.weight"
        self._before = self._mark()

    def __call__(self, module: nn.Module, _: Any) -> None:
        """Runs before the layer's forward."""
        watch = self._watch
        if module is not self.module or is_compiling() or recomputing():  # not a replica of DataParallel
            return
        if watch.blind:
            return
        if not self.calls:
            watch.called.append(self)
        self.calls += 1
        if module.training:
            self.learning += 1
            if watch.inside:
                self._count_in_forward(watch.forwards)

    def __reduce__(self) -> tuple[Any, ...]:
        return _hook_of_a_copy, ()

    def _count_in_forward(self, forward: int) -> None:
        self._in_forward = self._in_forward + 1 if forward == self._forward else 1
        self._forward = forward
        self.most = max(self.most, self._in_forward)
        self.repeated += self._in_forward == 2

    def moves(self) -> int:
        """A number that changes whenever the statistics move: the version of the layer's counter, if it has one."""
        counter = self.module._buffers.get("num_batches_tracked")
        return self.learning if counter is None or counter.is_inference() else counter._version

    def statistics(self) -> tuple[Tensor, Tensor] | None:
        """Running mean and variance; None where they are not made yet, or were taken away."""
        mean, var = self.module.running_mean, self.module.running_var
        return None if mean is None or var is None or is_lazy(mean) or is_lazy(var) else (mean, var)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Its running variance, which is NaN as soon as the input has NaN or infinity, and its gamma, by name."""
        if found := self.statistics():
            yield self._names[0], found[1]
        gamma = self.module._parameters.get("weight")
        if gamma is not None and not is_lazy(gamma):
            yield self._names[1], gamma

    def _mark(self) -> tuple[int, int, int]:
        return self.moves(), self.calls, self._watch.forwards

    def after_step(self, step: int) -> None:
        """Compares with the step before. In a compiled graph a layer is called when the model is."""
        before, self._before = self._before, self._mark()
        if self._before[0] != before[0]:
            self.moved, self.stood_from = self.moved + 1, 0
            self.frozen += not self.learns()
        elif self._before[1] != before[1] or (not self.calls and self._before[2] != before[2]):
            self.stood += self._watch.training
            self.stood_from = self.stood_from or step

    def after_blind_forward(self, moves: int) -> None:
        """Compares with `moves` before it. Without a momentum, the forward takes plain averages on purpose."""
        self.blind += self.moves() != moves and getattr(self.module, "momentum", None) is not None

    def learns(self) -> bool:
        """Whether a parameter of the layer requires a gradient, or it has none."""
        parameters = list(self.module.parameters())
        return not parameters or any(p.requires_grad for p in parameters)


class Hook:
    """A hook of the model or an optimizer. Copies and files of these do not take it along, nor a layer's."""

    def __init__(self, run: Callable[[Any], None]) -> None:
        self.run = run

    def __call__(self, _: Any, arguments: Any, *__: Any) -> None:
        """Runs what it is for, outside of graphs and of passes that repeat one."""
        if not is_compiling() and not recomputing():
            self.run(arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return _hook_of_a_copy, ()


def _unwatched(*_: Any) -> None:
    """The hook that a copied or loaded model has where the original was watched."""


def _hook_of_a_copy() -> Callable[..., None]:
    return _unwatched
