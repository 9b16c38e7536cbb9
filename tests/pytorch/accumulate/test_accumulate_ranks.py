"""Exact micro-batches with DistributedDataParallel and SyncBatchNorm."""

import sys
from pathlib import Path

import pytest
from launching import failures, world

sys.path.append(str(Path(__file__).parents[1] / "ranks"))
import micro_batches  # the claims that the ranks check


@pytest.mark.parametrize("claim", micro_batches.claim.names)
def test_on_two_ranks(claim: str) -> None:
    assert not failures(world("micro_batches.py", 2), claim)
