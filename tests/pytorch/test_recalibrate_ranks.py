"""`recalibrate` and `merge_running_statistics`, where the batches are split over several processes."""

import copy
import sys

import pytest
import torch
from launching import RANKS, failures, world
from torch import nn

import xhat.torch as xt
from xhat.errors import ArgumentError

sys.path.insert(0, str(RANKS))
import populations  # the claims that the ranks check


def test_merging_in_one_process_changes_nothing() -> None:
    layer = nn.BatchNorm2d(2)
    layer(torch.randn(4, 2, 3, 3))
    before = copy.deepcopy(layer.state_dict())
    assert xt.merge_running_statistics(layer) is layer
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())
    with pytest.raises(ArgumentError, match=r"model is int"):
        xt.merge_running_statistics(3)  # type: ignore[type-var]


@pytest.mark.parametrize("claim", populations.claim.names)
def test_on_three_ranks(claim: str) -> None:
    assert not failures(world("populations.py", 3), claim)
