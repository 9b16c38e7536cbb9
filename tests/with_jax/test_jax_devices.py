"""One batch on eight devices is the batch on one: unequal parts, masks, devices without a value, and gradients."""

import json
from typing import Any

import pytest
from conftest import TESTS, in_a_process

pytest.importorskip("jax")

PROGRAM = (
    f"import runpy, sys; sys.path.insert(0, {str(TESTS / 'with_jax')!r}); sys.argv[0] = 'eight_devices'\n"
)
PROGRAM += f"runpy.run_path({str(TESTS / 'with_jax' / 'eight_devices.py')!r}, run_name='__main__')"


@pytest.fixture(scope="module")
def everything() -> Any:
    """What the program prints."""
    return json.loads(in_a_process(PROGRAM, timeout=600).splitlines()[-1])


@pytest.fixture(params=["around 0", "around 1e4"])
def found(request: pytest.FixtureRequest, everything: Any) -> Any:
    """The errors for one of the batches."""
    return everything[request.param]


WAYS = ("shard_map", "pmap", "vmap", "two names", "groups", "spmd")


def test_every_way_gives_the_numbers_of_one_device(found: Any) -> None:
    assert {way: found[way] for way in WAYS if not found[way] < 1e-6} == {}


def test_second_derivatives_too(found: Any) -> None:
    assert found["second order"] < 1e-5


def test_without_a_name_each_device_has_its_own_batch(found: Any) -> None:
    assert found["each device alone"] < 1e-5


def test_moments_are_merged_in_one_exchange(everything: Any) -> None:
    assert everything["collectives"]["of a forward"] == ["all-reduce"]
    assert set(everything["collectives"]["of shard_map"]) == {"all-reduce"}


def test_no_batch_is_gathered_where_jit_shards_it(everything: Any) -> None:
    assert set(everything["collectives"]["of spmd"]) == {"all-reduce"}


def test_no_channels_are_no_error(everything: Any) -> None:
    assert everything["no channels"] == [[16, 0], 16.0]
