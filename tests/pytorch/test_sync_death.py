"""If a rank is gone, the others get an error within the group's timeout, and nothing is half-updated."""

import pytest
from launching import world

LIMIT = 4  # seconds: the timeout of the ranks' group
MARGIN = 20  # for a busy machine


@pytest.mark.parametrize("backward", [False, True])
def test_the_others_get_an_error_in_time_that_says_where(backward: bool) -> None:
    first, victim, last = world("death.py", 3, XHAT_BACKWARD=str(int(backward)))
    # The victim was killed before it could say more.
    ways = {"killed": "gradient sums"} if backward else {"absent": "statistics", "killed": "statistics"}
    assert victim == ({} if backward else {"absent": {}})
    for survivor in (first, last):
        for way, what in ways.items():
            met = survivor[way]
            assert met["kind"] == "ExchangeError", met
            assert f"the exchange of {what}" in met["message"]
            assert "a rank has ended or did not come in time" in met["message"]
            assert met["seconds"] < LIMIT + MARGIN
        assert "'1'" in survivor["killed"]["message"]  # the layer's path
        assert survivor["killed"]["weights kept"]
    for way in ways:
        batches = 1 if way == "absent" else 4 if backward else 3
        assert first[way]["state"] == last[way]["state"]  # as after the last exchange that all took part in
        assert first[way]["state"][2] == batches


def test_a_first_exchange_that_a_rank_does_not_come_to_is_the_same_error() -> None:
    met, _ = world("late.py", 2)
    assert met["kind"] == "ExchangeError", met
    assert "the first exchange, which makes a process group, failed on rank 0 of 2" in met["message"]
    assert "a rank has ended or did not come in time. No state was changed." in met["message"]
    assert met["seconds"] < LIMIT + MARGIN
    assert met["state"] == [[0.0] * 5, [1.0] * 5, 0]
