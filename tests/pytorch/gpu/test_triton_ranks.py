"""A batch on many ranks whose moments are exchanged on the device, without a copy to the host."""

import sys

import pytest
from launching import RANKS, failures, world
from requirements_of_triton import requires_triton

sys.path.insert(0, str(RANKS))
import on_device  # the claims that the ranks check

pytestmark = requires_triton


@pytest.mark.parametrize("claim", on_device.claim.names)
def test_ranks_exchange_tensors_of_their_device(claim: str) -> None:
    assert not failures(world("on_device.py", 2, TRITON_INTERPRET="1", XHAT_TRITON="1"), claim)
