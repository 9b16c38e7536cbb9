"""Tests of xhat.keras run on the backend that KERAS_BACKEND names; without Keras or the backend they are left out."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest

BACKEND = os.environ["KERAS_BACKEND"]

collect_ignore_glob = [] if find_spec("keras") and find_spec(BACKEND) else ["*"]

# What Keras itself warns of, on the versions that are pinned.
THEIRS = ["ignore:__array__ implementation doesn't accept a copy keyword:DeprecationWarning"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            for theirs in THEIRS:
                item.add_marker(pytest.mark.filterwarnings(theirs))
