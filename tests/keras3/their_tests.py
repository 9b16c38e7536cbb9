"""`python tests/keras3/their_tests.py BACKEND`: Keras's own tests of its batch norm, with our layer in its place.

The tests come from the installed Keras. `python -m pytest` of the same file, without this, is the comparison.
"""

import os
import sys
from pathlib import Path

import pytest

__all__ = ["main"]


class Ours:
    """A plugin that puts our class where the test module looks for Keras's."""

    def pytest_configure(self) -> None:
        """Runs before the test module is imported."""
        from keras.src import layers

        import xhat.keras

        layers.BatchNormalization = xhat.keras.BatchNormalization


def main(backend: str) -> int:
    """Runs them on this backend."""
    os.environ["KERAS_BACKEND"] = backend
    import keras

    tests = Path(keras.__file__).parent / "src" / "layers" / "normalization" / "batch_normalization_test.py"
    os.chdir(tests.parent)
    return pytest.main(
        ["-q", "-c", os.devnull, "-p", "no:cacheprovider", "-W", "ignore", str(tests)], [Ours()]
    )


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
