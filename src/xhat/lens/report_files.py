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
        found = np.load(path, allow_pickle=False)
    except OSError as error:
        reason = error.strerror or "it is not an array file"
        raise ArgumentError(f"report: {path} can't be read ({reason}), expected a file written by numpy.save.") from None
    except (ValueError, EOFError, MemoryError):
        raise ArgumentError(f"report: {path} holds no array of numbers, expected a file written by numpy.save.") from None
    if isinstance(found, np.ndarray):
        return found
    names = ", ".join(found.files)
    found.close()
    raise ArgumentError(f"report: {path} is an archive (of {names}), expected one array, written by numpy.save.")
