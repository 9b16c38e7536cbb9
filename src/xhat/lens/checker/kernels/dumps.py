"""Dumps of kernels as arrays: .npz, a folder of .npy files, .safetensors, and dtypes that NumPy lacks.

Nothing is judged here, and nothing is unpickled, so a dump can't run code.
"""

from collections.abc import Iterable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from xhat.errors import ArgumentError, DtypeError

__all__ = ["as_float64", "read_dumps"]

_KINDS = "a .npz or .safetensors file, or a folder of .npy files"
# dtypes of safetensors that NumPy has; bfloat16 stays as its bits
_SAFETENSORS = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "I64": "<i8",
    "I32": "<i4",
    "BOOL": "?",
}


def read_dumps(paths: Iterable[str | Path]) -> dict[str, Any]:
    """All arrays of these dumps by name; later dumps add to earlier ones. Raises ArgumentError or DtypeError."""
    found: dict[str, Any] = {}
    for path in map(Path, paths):
        found |= _read(path)
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.is_dir():
            files = sorted(path.rglob("*.npy"))
            return {
                f.relative_to(path).with_suffix("").as_posix(): np.load(f, allow_pickle=False) for f in files
            }
        if path.suffix == ".safetensors":
            return _safetensors(path)
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
    except OSError as error:
        raise ArgumentError(
            f"check: {path} can't be read ({error.strerror or 'it is damaged'}), expected {_KINDS}."
        ) from None
    except Exception as error:  # a damaged archive fails in the zip, the header or the values
        if isinstance(error, ArgumentError | DtypeError | ModuleNotFoundError):
            raise
        text = str(error).partition("\n")[0] or type(error).__name__
        raise ArgumentError(
            f"check: {path} holds no arrays of numbers ({text}), expected {_KINDS}."
        ) from None
    raise ArgumentError(f"check: {path} is no dump that can be read, expected {_KINDS}.")


def _safetensors(path: Path) -> dict[str, Any]:
    try:
        safetensors = import_module("safetensors")
    except ModuleNotFoundError:
        raise ArgumentError(
            f"check: {path.name} needs the package safetensors; install it with pip install safetensors, "
            "or save the arrays with numpy.savez."
        ) from None
    found = {}
    for name, entry in safetensors.deserialize(path.read_bytes()):
        dtype = _SAFETENSORS.get(entry["dtype"])
        if dtype is None:
            raise DtypeError(f"check: {name} has dtype {entry['dtype']}, expected {', '.join(_SAFETENSORS)}.")
        found[name] = np.frombuffer(bytes(entry["data"]), dtype).reshape(entry["shape"])
    return found


def as_float64(name: str, value: Any) -> tuple[NDArray[np.float64], str]:
    """The values, and the dtype that they had: "float64", "float32", "float16" or "bfloat16".

    A float array whose values all fit into 16 bits counts as such, since dumps are often widened before they are
    saved. bfloat16 may be saved as it is ("|V2") or as its bits (uint16). Raises DtypeError for other dtypes.
    """
    if hasattr(value, "detach"):  # a PyTorch tensor in a mapping
        tensor = value.detach().cpu()
        value = tensor.float().numpy() if str(tensor.dtype) == "torch.bfloat16" else tensor.numpy()
    array = np.asarray(value)
    if array.dtype.name == "bfloat16":
        array = array.view(np.uint16)
    if array.dtype.str[1:] == "V2" or array.dtype == np.uint16:
        bits = array.view(np.uint16).astype(np.uint32) << np.uint32(16)
        return bits.view(np.float32).astype(np.float64), "bfloat16"
    if array.dtype.kind not in "fiub" or array.dtype.itemsize > 8:
        raise DtypeError(
            f"check: {name} has dtype {array.dtype}, expected float64, float32, float16, or bfloat16 as |V2 or uint16."
        )
    values = array.astype(np.float64)
    return values, _narrowest(values, array.dtype.name if array.dtype.kind == "f" else "float64")


def _narrowest(values: NDArray[np.float64], dtype: str) -> str:
    """The dtype, or the 16-bit one that holds all values, if these are so many that it is no accident."""
    if dtype not in ("float32", "float64") or len(set(values.ravel()[:64].tolist())) < 8:
        return dtype
    with np.errstate(all="ignore"):
        single = values.astype(np.float32)
        if not np.array_equal(single, values, equal_nan=True):
            return dtype
        if not (single.view(np.uint32) & np.uint32(0xFFFF)).any():
            return "bfloat16"
        half = values.astype(np.float16).astype(np.float64)
        return "float16" if np.array_equal(half, values, equal_nan=True) else "float32"


def names_of(dump: Mapping[str, Any]) -> str:
    """The first names of a dump, for a sentence."""
    names = list(map(str, dump))
    return ", ".join(names[:8]) + (" ..." if len(names) > 8 else "") or "nothing"
