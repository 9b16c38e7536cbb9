"""The passes over the batches: the loss, or the outputs, in four modes, and the moments that each layer gets.

    evaluation  A  the model in evaluation
    batch       B  the same, but batch norms normalize by the batch's statistics
    pooled      C  evaluation, with the moments of all these batches in place of the running statistics
    train       D  the model as training runs it; or as it was given, if it has batch norms in training mode

A, B and D run on each batch as it comes; C, its repetition with half of the batches, and the passes with one layer's
statistics replaced read the batches again. What the numbers mean must never be decided here.
"""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from xhat.errors import ArgumentError, XhatError
from xhat.torch.doctor.batches import copied
from xhat.torch.doctor.guard import Guarded, random_states_kept
from xhat.torch.doctor.layers import Layer
from xhat.torch.doctor.measured import MODES, Measured
from xhat.torch.doctor.origins import Origins, traced_origins
from xhat.torch.doctor.outputs import distance, sketch
from xhat.torch.doctor.padding import Padding
from xhat.torch.doctor.ranks import share_scores, share_taps
from xhat.torch.doctor.tap import Tap, tapped
from xhat.torch.errors import ExchangeError, first_line
from xhat.torch.recalibrate import write
from xhat.torch.sync.merge import Moments

__all__ = ["Runner", "measure", "replayed"]

Array = NDArray[np.float64]


class Runner:
    """Runs a model in its modes on one batch. Has to be used inside a guard."""

    def __init__(self, measured: Measured, state: Guarded, forward: Any, loss: Any) -> None:
        self.measured, self.state = measured, state
        self.forward, self.loss = forward, loss
        model = measured.model
        present = {m: m.training for m in model.modules()}
        self.evaluation = _modes_after(model, "eval")
        given = measured.was_training or any(x.training and not x.fixed for x in measured.layers)
        self.train = present if given else _modes_after(model, "train")
        self.batch = self.evaluation | {layer.module: True for layer in measured.layers if not layer.fixed}

    def run(self, batch: Any, index: int, mode: str) -> tuple[float, list[Array]]:
        """The loss (NaN without one) and a sketch of the output. Raises what the model raises."""
        flags = {"batch": self.batch, "train": self.train}.get(mode, self.evaluation)
        for module, training in flags.items():
            module.training = training
        with random_states_kept(seed=index):
            output = self.forward(self.measured.model, copied(batch))
            value = float("nan") if self.loss is None else _number(self.loss(output, copied(batch)))
            return value, sketch(output)


def _modes_after(model: nn.Module, method: str) -> dict[nn.Module, bool]:
    """The mode of each module after model.eval() or model.train(), which a model may have replaced."""
    try:
        getattr(model, method)()
    except NotImplementedError:  # an exported program, which has no modes
        for m in model.modules():
            m.training = method == "train"
    return {m: m.training for m in model.modules()}


def _number(value: Any) -> float:
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        return float(value.detach())
    if isinstance(value, (int, float, np.number)):
        return float(value)
    got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
    raise ArgumentError(
        f"diagnose: loss returned {got}, expected one number for a batch. Return its mean: "
        "loss=lambda output, batch: ....mean()"
    )


# ---------------------------------------------------------------------------------------------------- the passes


def measure(runner: Runner, first: Iterable[Any], again: Callable[[str], Iterable[Any]]) -> None:
    """Fills `runner.measured`. first: the batches as they come; again(what): the same ones once more."""
    measured = runner.measured
    seen: dict[str, list[tuple[float, list[Array]] | None]] = {mode: [] for mode in (*MODES, "half")}
    for mode in ("evaluation", "batch", "train"):
        padding = None if mode == "evaluation" else Padding()
        measured.taps[mode] = [Tap(layer, padding) for layer in measured.layers]
    origins = Origins()
    for index, batch in enumerate(first):
        for mode in ("evaluation", "batch", "train"):
            traced = not index and mode != "batch"
            with traced_origins(measured.model, measured.layers, origins) if traced else nullcontext():
                seen[mode].append(_one(runner, batch, index, mode))
            runner.state.reset()
        measured.count = index + 1
    measured.feeds = origins.feeds
    measured.counts = [measured.count]
    if measured.ranks > 1:
        share_taps(measured, measured.group)
    if not any(measured.counts):
        raise ArgumentError("diagnose: there were no batches.")
    measured.layers, measured.taps = _in_order(measured)
    moving = [layer for layer in measured.layers if not layer.fixed and measured.tap(layer).batches]
    if moving:
        seen["pooled"] = _all(runner, again("the pooled moments"), moving, lambda tap: tap.pooled)
        if runner.loss is None and sum(measured.counts) > 1:
            seen["half"] = _all(runner, again("half of the moments"), moving, lambda tap: tap.halves[0])
    _compare(measured, seen, runner.loss is not None)


def _one(runner: Runner, batch: Any, index: int, mode: str) -> tuple[float, list[Array]] | None:
    """One batch in one mode, with its taps; None where this mode can't run on it."""
    measured, taps = runner.measured, runner.measured.taps[mode]
    try:
        with tapped(taps):
            found = runner.run(batch, index, mode)
    except (ArgumentError, ExchangeError):
        if mode != "train":
            raise
        found = None
    except Exception as error:
        single = [tap.layer.path for tap in taps if tap.degenerate]
        if mode == "evaluation":
            raise _raised(error, "in evaluation mode", index) from error
        if single:
            measured.single_values += [path for path in single if path not in measured.single_values]
            why = f"a batch has one value per channel in {single[-1]!r}"
        else:
            why = f"the model raised {type(error).__name__}: {first_line(error)}"
        measured.failures.setdefault(mode, why)
        found = None
    for tap in taps:
        tap.forget() if found is None else tap.end_of_batch(index)
        if tap.padding is not None:
            tap.padding.forget()
    return found


def _in_order(measured: Measured) -> tuple[list[Layer], dict[str, list[Tap]]]:
    """The layers in the order of their first call, those that were not called last; the taps in the same order."""
    first = [tap.first_call if tap.first_call >= 0 else 1 << 62 for tap in measured.taps["evaluation"]]
    order = sorted(range(len(first)), key=first.__getitem__)
    taps = {mode: [taps[k] for k in order] for mode, taps in measured.taps.items()}
    return [measured.layers[k] for k in order], taps


def _all(
    runner: Runner, batches: Iterable[Any], layers: list[Layer], moments: Callable[[Tap], Moments]
) -> list[tuple[float, list[Array]] | None]:
    """All batches in evaluation, with these moments as the running statistics of these layers."""
    runner.state.reset()
    for layer in layers:
        tap = runner.measured.tap(layer)
        if layer.tracks:
            write(layer.module, moments(tap), tap.calls)
    found: list[tuple[float, list[Array]] | None] = []
    for index, batch in enumerate(batches):
        try:
            found.append(runner.run(batch, index, "pooled"))
        except XhatError:
            raise
        except Exception as error:
            raise _raised(error, "with the pooled moments", index) from error
    runner.state.reset()
    return found


def _raised(error: Exception, where: str, index: int) -> ArgumentError:
    return ArgumentError(
        f"diagnose: the model or the loss raised {type(error).__name__} {where}, with batch {index}: "
        f"{first_line(error)}. Say how the model is called: forward=lambda model, batch: ..."
    )


def _compare(measured: Measured, seen: dict[str, Any], with_loss: bool) -> None:
    """Losses and distances by mode."""
    none = [None] * measured.count
    for mode in MODES:
        found = seen[mode] or none
        measured._ran[mode] = np.array([one is not None for one in found])
        if with_loss:
            measured.losses[mode] = np.array([np.nan if one is None else one[0] for one in found])
        for to, distances in (("evaluation", measured.distances), ("batch", measured.to_batch)):
            distances[mode] = np.array(
                [
                    np.nan if one is None or other is None else distance(one[1], other[1])
                    for one, other in zip(found, seen[to], strict=True)
                ]
            )
    if seen["half"]:
        pairs = zip(seen["half"], seen["pooled"], strict=True)
        measured.halves = float(np.mean([distance(a[1], b[1]) for a, b in pairs]))
    measured.sketches = seen["batch"]
    if measured.ranks > 1:
        _share(measured)
    if with_loss and not any(np.isfinite(values).any() for values in measured.losses.values()):
        raise ArgumentError(
            "diagnose: the loss is NaN or infinite for every batch in every mode, so that nothing can be compared. "
            "Check the loss and the batches; batch norm is not at fault alone."
        )


def _share(measured: Measured) -> None:
    """Makes the losses and distances those of all ranks' batches."""
    kinds = [kind for kind in (measured.losses, measured.distances, measured.to_batch, measured._ran) if kind]
    rows = [kind[mode] for kind in kinds for mode in MODES] + [np.full(measured.count, measured.halves)]
    shared = iter(share_scores(rows, measured, measured.group))
    for kind in kinds:
        for mode in MODES:
            found = next(shared)
            kind[mode] = found > 0 if kind is measured._ran else found
    halves = next(shared)
    measured.halves = float(np.nanmean(halves)) if np.isfinite(halves).any() else float("nan")
    measured.count = sum(measured.counts)


# ------------------------------------------------------------------------------------------------- once more


def replayed(
    runner: Runner, batches: Iterable[Any], layers: list[Layer], moments: Callable[[Tap], Moments]
) -> Array:
    """The scores with these moments as the running statistics of these layers alone."""
    measured, found = runner.measured, _all(runner, batches, layers, moments)
    if runner.loss is not None:
        scores = np.array([np.nan if one is None else one[0] for one in found])
    else:
        pairs = zip(found, measured.sketches, strict=True)
        scores = np.array([distance(a[1], b[1]) if a and b else np.nan for a, b in pairs])
    return scores if measured.ranks == 1 else share_scores([scores], measured, measured.group)[0]
