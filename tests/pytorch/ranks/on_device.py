"""Ranks that exchange tensors of their device, as with NCCL. Here the CPU stands for the device: its tensors go through
gloo as they are, Triton's interpreter runs the kernels, and whatever reads a value on the host is counted.
"""

import warnings
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from claims import Claims
from definition import ACTIVATIONS, problem
from equality import ROWS, check, layer_for, numbers, part_of, splits
from torch import Tensor
from torch.profiler import profile

from xhat.torch import engine_of, functional, operators, running_stats
from xhat.torch.sync import frames, shared_batch

claim = Claims()
CHANNELS = 2  # for each of which the interpreter takes its time
READS = {"aten::item", "aten::_local_scalar_dense", "aten::is_nonzero"}
SENT: list[tuple[torch.device, torch.dtype, int]] = []


def as_on_a_device() -> None:
    """Makes the layers take the CPU for a device that the host would have to wait for."""
    assert engine_of(torch.ones(2, 3)) == "triton"
    warnings.simplefilter("ignore", RuntimeWarning)  # 0 / 0 in an interpreted part without elements
    for module in (functional, operators, running_stats, shared_batch):
        module.on_a_device = lambda value: isinstance(value, Tensor)  # type: ignore[attr-defined]
    frames.takes = lambda device, group: True
    collective = frames._all_gather

    def seen(received: Tensor, sent: Tensor, **options: Any) -> Any:
        SENT.append((sent.device, sent.dtype, len(sent)))
        return collective(received, sent, **options)

    frames._all_gather = seen


@claim
def parts_of_any_size_and_masks_give_what_the_whole_batch_gives() -> None:
    as_on_a_device()
    for name, mask, activation in (("uneven", "weights", "silu"), ("empty", "bool", "none")):
        p = problem(numbers(ROWS, CHANNELS, 2), residual=activation == "silu", mask=mask)
        check(
            p,
            dict(splits())[name],
            (name, mask),
            correction=int(mask == "bool"),
            activation=ACTIVATIONS[activation],
        )


@claim
def one_tensor_is_exchanged_in_each_direction_and_the_host_reads_nothing() -> None:
    p = problem(numbers(ROWS, CHANNELS, 2), mask="bool")
    layer, mine = layer_for(p), part_of(p, dict(splits())["uneven"])
    with patch.object(torch, "_assert_async"):  # which reads its argument on a CPU
        for _ in range(2):  # until the frames have room
            layer(mine.x, mask=mine.mask).sum().backward()
        SENT.clear()
        with profile() as seen:
            layer(mine.x, mask=mine.mask).sum().backward()
    assert [(device.type, dtype) for device, dtype, _ in SENT] == [("cpu", torch.float64)] * 2
    # m, means and m2; then both sums.
    assert [size - frames.WORDS for _, _, size in SENT] == [1 + 2 * CHANNELS, 2 * CHANNELS]
    assert not READS & {event.key for event in seen.key_averages()}
    with profile() as seen:
        layer.running_mean.sum().item()
    assert READS & {event.key for event in seen.key_averages()}  # so that this would be seen


@claim
def ranks_that_differ_fail_on_the_device() -> None:
    layer = layer_for(problem(numbers(ROWS, CHANNELS), False))
    layer.eps = 1e-3 * (1 + dist.get_rank())
    with pytest.raises(RuntimeError, match="the ranks exchange different things where rank"):
        layer(numbers(3, CHANNELS))


if __name__ == "__main__":
    claim.run()
