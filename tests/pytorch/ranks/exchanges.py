"""What is exchanged and when nothing is; process groups; edge cases. Runs these claims and those of `equality`."""

import copy
import itertools
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from claims import close, on_all_ranks, refused
from definition import ACTIVATIONS, Problem, definition, option_sets, problem
from equality import CHANNELS, ROWS, check, claim, layer_for, numbers, part_of, splits
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from xhat.errors import ArgumentError, DegenerateBatchError, ShapeError
from xhat.torch import BatchNorm1d, SyncBatchNorm, cpu
from xhat.torch.sync import frames

# ------------------------------------------------------------------------------------------------ bits and bytes


@claim
def all_ranks_hold_the_same_bits_run_after_run() -> None:
    for name, rows in splits():
        x = numbers(ROWS, CHANNELS, 31) * 1e3
        found = []
        for _ in range(2):
            layer = SyncBatchNorm(CHANNELS)
            layer(x[rows].float())
            found.append((layer.running_mean.tolist(), layer.running_var.tolist()))
        assert found[0] == found[1], name
        assert all(other == found for other in on_all_ranks(found)), name


class Traffic:
    """Records the bytes that this rank sends in each collective of a `with` block."""

    def __enter__(self) -> "Traffic":
        self.bytes: list[int] = []
        self.before = frames._all_gather

        def counted(out: Tensor, frame: Tensor, **more: Any) -> Any:
            self.bytes.append(frame.nbytes)
            return self.before(out, frame, **more)

        frames._all_gather = counted
        return self

    def __exit__(self, *_: Any) -> None:
        frames._all_gather = self.before


def sizes(step: Any) -> list[int]:
    with Traffic() as traffic:
        step()
    return traffic.bytes


HEADER = 16 * 8
FORWARD, BACKWARD = HEADER + 8 * (3 + 2 * CHANNELS), HEADER + 8 * 2 * CHANNELS


@claim
def one_collective_forward_and_one_backward_whatever_the_options() -> None:
    alone = dist.get_world_size() == 1
    rows = dict(splits())["uneven"]
    for o in list(option_sets(training=True))[::7]:
        p = problem(numbers(ROWS, CHANNELS, 4), o["affine"], o["residual"], o["mask"])
        mine, layer = part_of(p, rows), layer_for(p, activation=ACTIVATIONS[o["activation"]])
        frames._sessions.clear()

        def step(mine: Problem = mine, layer: SyncBatchNorm = layer) -> None:
            layer(mine.x, mine.residual, mine.mask).sum().backward()

        first, second, third = sizes(step), sizes(step), sizes(step)
        # The capacity of a frame is set when one exchange first follows another, by a second frame.
        assert first == ([] if alone else [HEADER, FORWARD, HEADER, BACKWARD]), first
        assert second == ([] if alone else [HEADER, FORWARD, BACKWARD]), second
        assert third == ([] if alone else [FORWARD, BACKWARD]), third


@claim
def a_gradient_of_a_gradient_makes_six_more_whatever_the_options() -> None:
    """The sums for mean, variance and gradient again, then their adjoints; and one more where dy depends on y."""
    for o, through_dy in itertools.product(list(option_sets(training=True))[::17], (False, True)):
        p = problem(numbers(ROWS, CHANNELS, 3), o["affine"], o["residual"], o["mask"])
        mine = part_of(p, dict(splits())["uneven"])
        layer = layer_for(p, correction=o["correction"], activation=ACTIVATIONS[o["activation"]])
        found: list[int] = []

        def step(
            mine: Problem = mine,
            layer: SyncBatchNorm = layer,
            through_dy: bool = through_dy,
            found: list[int] = found,
        ) -> None:
            y = layer(mine.x, mine.residual, mine.mask)
            dy = y if through_dy else torch.ones_like(y)
            (dx,) = torch.autograd.grad(y, mine.x, dy, create_graph=True)
            found[:] = sizes(lambda: dx.square().sum().backward())

        for _ in range(3):  # until each frame has its size
            step()
        assert len(found) == (0 if dist.get_world_size() == 1 else 7 if through_dy else 6), (o, found)


@claim
def a_model_s_frames_have_the_size_of_their_layer() -> None:
    widths = [3, 17, 5, 64]
    layers = [SyncBatchNorm(c, dtype=torch.float64) for c in widths]
    inputs = [numbers(4, c).requires_grad_() for c in widths]

    def step() -> None:
        sum(layer(x).square().sum() for layer, x in zip(layers, inputs, strict=True)).backward()  # type: ignore[union-attr]

    step()
    step()
    expected = [HEADER + 8 * (3 + 2 * c) for c in widths] + [HEADER + 8 * 2 * c for c in reversed(widths)]
    assert sizes(step) == ([] if dist.get_world_size() == 1 else expected)


@claim
def what_needs_no_exchange_makes_none() -> None:
    rows = dict(splits())["even"]
    x = numbers(ROWS, CHANNELS)[rows]
    alone = dist.get_world_size() == 1
    layer = SyncBatchNorm(CHANNELS, dtype=torch.float64)
    for _ in range(3):  # x requires no gradient, and the parameters' gradients are this rank's
        found = sizes(lambda: layer(x).sum().backward())
    assert found == ([] if alone else [FORWARD]), found
    layer.eval()
    assert not sizes(lambda: layer(x.clone().requires_grad_()).sum().backward())
    layer.train()
    layer.frozen_statistics = True
    assert not sizes(lambda: layer(x.clone().requires_grad_()).sum().backward())
    without = SyncBatchNorm(CHANNELS, track_running_stats=False, dtype=torch.float64).eval()
    assert not sizes(lambda: without(x))


@claim
def an_input_that_asks_for_no_gradient_gets_none_computed() -> None:
    """As in a network's first layer: one pass over it fewer, and the same other gradients."""
    for activation, residual in itertools.product((None, "silu"), (False, True)):
        found, passes = [], []
        for asks in (True, False):
            p = part_of(problem(numbers(ROWS, CHANNELS, 3), residual=residual), dict(splits())["uneven"])
            layer = layer_for(p, activation=activation)
            y = layer(p.x.requires_grad_(asks), p.residual)
            with patch.object(cpu, "backward", wraps=cpu.backward) as kernel:
                y.backward(numbers(*y.shape, seed="dy"))
            passes.append(kernel.call_count)
            found.append([t.grad for t in (*layer.parameters(), p.residual) if t is not None])
        for t, same in zip(*found, strict=True):
            close(t, same, 1e-14, (activation, residual))
        if dist.get_world_size() > 1:
            assert passes == [2, 1], (activation, residual, passes)


@claim
def a_group_of_one_rank_is_the_local_layer() -> None:
    mine = [dist.new_group([r]) for r in range(dist.get_world_size())][dist.get_rank()]
    x = numbers(ROWS, CHANNELS).float()[dict(splits())["uneven"]]
    if len(x) > 1:
        one, many = BatchNorm1d(CHANNELS), SyncBatchNorm(CHANNELS, process_group=mine)
        assert not sizes(lambda: many(x))
        assert torch.equal(one(x), BatchNorm1d(CHANNELS)(x))
        assert torch.equal(one.running_var, many.running_var)


@claim
def sub_groups_have_batches_of_their_own() -> None:
    ranks, rank = dist.get_world_size(), dist.get_rank()
    members = [list(range((ranks + 1) // 2)), list(range((ranks + 1) // 2, ranks))]
    groups = [dist.new_group(m) if m else None for m in members]
    which = int(rank >= (ranks + 1) // 2)
    x = numbers(ROWS, CHANNELS)
    whole = x[: ROWS // 2] if which == 0 else x[ROWS // 2 :]
    place, size = members[which].index(rank), len(members[which])
    rows = slice(len(whole) * place // size, len(whole) * (place + 1) // size)
    layer = SyncBatchNorm(CHANNELS, dtype=torch.float64, process_group=groups[which])
    assert layer.process_group is groups[which] and copy.deepcopy(layer).process_group is groups[which]
    mine = whole[rows].clone().requires_grad_()
    y = layer(mine)
    (y * numbers(*whole.shape, seed="dy")[rows]).sum().backward()
    reference = whole.clone().requires_grad_()
    expected = definition(Problem(reference), eps=1e-5).y
    (expected * numbers(*whole.shape, seed="dy")).sum().backward()
    close(y, expected[rows], 1e-12, "y")
    close(mine.grad, reference.grad[rows], 1e-12, "dx")
    if ranks > 1:
        other = SyncBatchNorm(CHANNELS, process_group=groups[1 - which])
        assert "not in the layer's process group" in refused(RuntimeError, lambda: other(mine.float()))


# ------------------------------------------------------------------------------------------------------- edges


@claim
def a_single_value_on_each_rank_is_a_batch() -> None:
    x = numbers(dist.get_world_size(), CHANNELS)
    layer, mine = SyncBatchNorm(CHANNELS, dtype=torch.float64), x[dist.get_rank()][None]
    if len(x) == 1:
        assert "more than 1 value" in refused(DegenerateBatchError, lambda: layer(mine))
    else:
        close(layer(mine), definition(Problem(x)).y[dist.get_rank()][None], 1e-12, "y")
        alone = mine[: 1 if dist.get_rank() == 0 else 0]  # one value in all
        assert "one value per channel" in refused(DegenerateBatchError, lambda: layer(alone))
        assert layer.num_batches_tracked == 1


@claim
def a_batch_that_is_empty_everywhere_moves_nothing() -> None:
    layer = SyncBatchNorm(CHANNELS)
    x = torch.zeros(0, CHANNELS, 3, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    assert y.shape == x.shape == x.grad.shape and layer.num_batches_tracked == 0
    assert layer.running_var.tolist() == [1.0] * CHANNELS and not layer.weight.grad.any()


@claim
def a_mask_of_zeros_on_one_rank_leaves_the_batch_to_the_others() -> None:
    if dist.get_world_size() > 1:
        x, rows = numbers(ROWS, CHANNELS, 3), dict(splits())["even"]
        mask = torch.ones(ROWS, 1, 1)
        mask[: ROWS // dist.get_world_size()] = 0
        check(problem(x)._replace(mask=mask), rows, "rank 0 is masked")
        layer = SyncBatchNorm(CHANNELS)
        assert "every weight of the mask is 0" in refused(
            DegenerateBatchError, lambda: layer(x[rows].float(), mask=mask[rows] * 0)
        )


@claim
def what_is_not_finite_meets_all_ranks_alike() -> None:
    x, rows = numbers(ROWS, CHANNELS).float(), dict(splits())["even"]
    x[-1, 2] = torch.nan
    layer = SyncBatchNorm(CHANNELS, nonfinite="skip")
    layer(x[rows])
    assert layer.running_mean.isfinite().all() and layer.skipped.tolist() == [0, 0, 1, 0, 0]
    strict = SyncBatchNorm(CHANNELS, nonfinite="raise")
    assert "channel 2" in refused(ArgumentError, lambda: strict(x[rows]))
    assert strict.num_batches_tracked == 0 and not strict.running_mean.any()


@claim
def a_momentum_of_none_averages_all_batches() -> None:
    layer = SyncBatchNorm(CHANNELS, momentum=None, dtype=torch.float64)
    rows, batches = dict(splits())["uneven"], [numbers(ROWS, CHANNELS, seed=s) for s in "abc"]
    for x in batches:
        layer(x[rows])
    close(layer.running_mean, torch.stack([x.mean(0) for x in batches]).mean(0), 1e-12, "mean")


@claim
def checkpointing_counts_once_and_ends() -> None:
    rows, x = dict(splits())["empty"], numbers(ROWS, CHANNELS, 2)
    for reentrant in (False, True):
        layer = SyncBatchNorm(CHANNELS, dtype=torch.float64)
        mine = x[rows].clone().requires_grad_()
        y = checkpoint(layer, mine, use_reentrant=reentrant)
        (y * numbers(*x.shape, seed="dy")[rows]).sum().backward()
        reference = x.clone().requires_grad_()
        (definition(Problem(reference)).y * numbers(*x.shape, seed="dy")).sum().backward()
        close(mine.grad, reference.grad[rows], 1e-12, reentrant)
        assert layer.num_batches_tracked == 1
        close(layer.running_mean, 0.1 * x.mean((0, 2)), 1e-12, reentrant)


@claim
def dimensions_and_transforms_are_refused_in_a_sentence() -> None:
    layer = SyncBatchNorm(CHANNELS)
    assert "at least 2D" in refused(ShapeError, lambda: layer(torch.zeros(CHANNELS)))
    if dist.get_world_size() > 1:
        x = numbers(4, CHANNELS).float()
        assert "torch.func" in refused(ArgumentError, lambda: torch.func.grad(lambda t: layer(t).sum())(x))
        mask = torch.ones(4, 1, requires_grad=True)
        assert "Detach it" in refused(ArgumentError, lambda: layer(x, mask=mask))


if __name__ == "__main__":
    claim.run()
