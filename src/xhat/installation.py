"""What xhat can't run without, NumPy and the compiled kernels, or one sentence about what is missing and what to do.

`xhat` imports this file first, and `plan` takes the kernels from here: no other file imports `_kernels`. No check of an
optional package lives here.
"""

from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from types import ModuleType

__all__ = ["kernels"]

FOLDER = Path(__file__).parent
AGAIN = "Install xhat again with this Python: python -m pip install --force-reinstall xhat, or . in a clone."
LIBRARIES = {
    "libgomp": "apt install libgomp1, or dnf install libgomp",
    "libomp": "apt install libomp5, or brew install libomp",
}


def _what_is_missing(message: str) -> str:
    """Why the kernels were not imported and the remedy, from the message of Python or the loader."""
    import re
    import sys
    from platform import machine

    files = sorted(file.name for file in FOLDER.glob("_kernels.*") if file.suffix in (".so", ".pyd"))
    fitting = [file for file in files if file.removeprefix("_kernels") in EXTENSION_SUFFIXES]
    python = f"Python {sys.version_info[0]}.{sys.version_info[1]} on {machine()}"
    library = re.search(r"\b(libg?omp)\b[^:\s]*: cannot open|Library not loaded: \S*\b(libomp)\b", message)
    archive = next((folder for folder in FOLDER.parents if folder.is_file()), None)
    if archive:
        return (
            f"xhat: compiled kernels can't be loaded from an archive, {archive}. Unpack it, or install xhat."
        )
    if message.startswith("No module named") and not files:
        return (
            f"xhat: there are no compiled kernels in {FOLDER}. Compile them: python -m pip install ., in a clone of "
            "xhat, and start Python outside of its folder src."
        )
    if library:
        name = library[1] or library[2]
        return (
            f"xhat: the compiled kernels need OpenMP's runtime, {name}, which is not installed. Install it: "
            f"{LIBRARIES[name]}."
        )
    if (files and not fitting) or any(f"{file}: cannot open" in message for file in fitting):
        return f"xhat: the compiled kernels, {files[0]}, are not for {python}. {AGAIN}"
    return f"xhat: the compiled kernels can't be loaded ({message}). {AGAIN}"


def _place(module: ModuleType) -> str:
    """What stands in a module's place on the path: its file, or the folder that was taken for it."""
    return str(getattr(module, "__file__", None) or next(iter(module.__path__)))


try:
    import numpy  # the other files import it without a check
except ModuleNotFoundError as error:
    if error.name != "numpy":
        raise
    raise ImportError("xhat: NumPy is not installed. Install it: python -m pip install numpy.") from error

if not hasattr(numpy, "ndarray"):  # a file or a folder of this name that stands before NumPy on the path
    raise ImportError(
        f"xhat: {_place(numpy)} is imported as numpy, and has no ndarray, expected NumPy. Rename it, or start Python "
        "in another folder."
    )

try:
    import xhat._kernels as kernels  # `from xhat import` takes a file that is missing for a circular import
except ImportError as error:
    raise ImportError(_what_is_missing(error.msg.split(" (")[0])) from error

if kernels.__file__ is None:  # a folder without files, which Python takes for a package
    raise ImportError(_what_is_missing(f"{_place(kernels)} is a folder"))
