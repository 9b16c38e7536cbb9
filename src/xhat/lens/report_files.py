"""Arrays from files, for the report: what `numpy.save` wrote, or one sentence about why it can't be read.

Nothing is unpickled: an array file from elsewhere can't run code here.
"""

from pathlib import Path
from typing import Any

import numpy as np

from xhat.errors import ArgumentError

__all__ = ["read_array"]


def read_array(path: str | Path) -> np.ndarray[Any, Any]:
    """The array in a .npy file. Raises ArgumentError where there is no file, or no array in it."""
    try:
        array = np.load(path, allow_pickle=False)
        if isinstance(array, np.ndarray):
            return array
        found = f"is an archive (of {', '.join(array.files)})"
        array.close()
    except OSError as error:
        found = f"can't be read ({error.strerror or 'it is not an array file'})"
    except (ValueError, EOFError, MemoryError):
        found = "holds no array of numbers"
    raise ArgumentError(f"report: {path} {found}, expected one array in a file written by numpy.save.")
