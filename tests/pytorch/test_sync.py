"""One batch on many processes: the same numbers as on one, in one exchange each way."""

import sys

import pytest
from launching import RANKS, failures, world

sys.path.insert(0, str(RANKS))
import equality  # its claims, which the ranks check


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize("claim", equality.claim.names)
def test_on_many_ranks(claim: str, ranks: int) -> None:
    assert not failures(world("equality.py", ranks), claim)
