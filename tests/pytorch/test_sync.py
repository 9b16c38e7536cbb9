"""A batch split over several processes: the results of one process, with one exchange in each direction."""

import sys

import pytest
from launching import RANKS, failures, world

sys.path.insert(0, str(RANKS))
import exchanges  # the claims that the ranks check
import faults
import offsets
import out_of_step
import training


@pytest.mark.parametrize("ranks", [1, 2, 4])  # `faults` runs on three
@pytest.mark.parametrize("claim", exchanges.claim.names)
def test_a_batch_on_many_ranks(claim: str, ranks: int) -> None:
    assert not failures(world("exchanges.py", ranks), claim)


@pytest.mark.parametrize("claim", offsets.claim.names)
def test_offsets_on_two_ranks(claim: str) -> None:
    assert not failures(world("offsets.py", 2), claim)


@pytest.mark.parametrize("claim", training.claim.names)
def test_training_on_two_ranks(claim: str) -> None:
    assert not failures(world("training.py", 2), claim)


@pytest.mark.parametrize("claim", faults.claim.names)
def test_a_fault_is_an_error_on_every_rank(claim: str) -> None:
    assert not failures(world("faults.py", 3), claim)


@pytest.mark.parametrize("claim", out_of_step.claim.names)
def test_ranks_that_differ_or_are_out_of_step_are_told(claim: str) -> None:
    assert not failures(world("out_of_step.py", 3), claim)
