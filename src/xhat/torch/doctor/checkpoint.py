"""`examine`: the batch norms of a state dict or a file. Files are read without running what is in them.

What the buffers mean is judged in `buffers`.
"""

import warnings
import zipfile
from argparse import Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path, PosixPath, WindowsPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xhat.errors import ArgumentError
from xhat.torch.doctor.buffers import judge
from xhat.torch.doctor.diagnosis import Diagnosis
from xhat.torch.doctor.observed import Observed, row
from xhat.torch.doctor.stored import Stored
from xhat.torch.errors import first_line

__all__ = ["examine"]

# The names of a batch norm's tensors: torch's, and those of xhat.numpy's layer for the same things.
NAMES = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
NUMPYS = {"gamma": "weight", "beta": "bias", "updates": "num_batches_tracked"}
# How deep a state dict may lie in a checkpoint: {"ema": {"model": {"state_dict": ...}}}.
DEPTH = 4
# Classes that training scripts put into checkpoints, and that hold data alone: options, paths, numbers of NumPy.
DATA: list[Any] = [
    Namespace, PosixPath, WindowsPath, np.dtype, np.ndarray,
    np.float64(0).__reduce__()[0], np.empty(0).__reduce__()[0],
    *(type(np.dtype(code)) for code in "?bBhHiIlLqQefdU"),
]  # fmt: skip

# What torch.load's messages have if a file is sound, and holds what is no data.
REFUSED = "not an allowed global", "Unsupported class", "TorchScript"


def examine(source: Any) -> Diagnosis:
    """Judge the batch norms of a checkpoint by their buffers alone.

    No model is built, and no code of the file runs.

    Parameters
    ----------
    source : str, Path or mapping
        The path of a file (of `torch.save`, read with weights_only=True; ``.safetensors``; ``.npz`` of the state of an
        `xhat.numpy.BatchNorm`), or a mapping. State dicts are also found in mappings of these, such as
        ``{"model": ..., "ema": ...}``, where the layers of each begin with its name; ``module.`` and ``_orig_mod.`` are
        left out.

    Returns
    -------
    Diagnosis
        The findings. Its modes are None.

    Raises
    ------
    ArgumentError
        If there is no such file, if it can't be read or would run code, and if no state dict is in it.

    See Also
    --------
    diagnose : A diagnosis with a model and batches, which can compare losses.

    Notes
    -----
    Without batches no loss can be compared. A finding is harmful only where statistics give wrong outputs for any
    input: where they are negative or not finite, or where they still are 0 and 1 although the layer's weight and bias
    have been trained.

    Examples
    --------
    >>> import torch
    >>> import xhat.torch as xt
    >>> state = torch.nn.BatchNorm1d(2).state_dict()
    >>> state["running_var"][1] = float("nan")
    >>> print(xt.examine({"model": state}).findings[0].symptom)
    The running statistics of 1 layer hold NaN or infinity, in 1 channels.
    """
    path = Path(source) if isinstance(source, str | Path) else None
    content = source if path is None else _read(path)
    if not isinstance(content, Mapping):
        raise ArgumentError(
            f"examine: {path or 'source'} holds {_kind(content)}, expected a state dict, or a dict with one."
        )
    found = dict(_state_dicts(content))
    if not found:
        raise ArgumentError(
            f"examine: {path or 'source'} holds no state dict, expected tensors by names such as 'bn1.running_mean'."
        )
    stored = [_layers(state, f"{name}/" if len(found) > 1 else "") for name, state in found.items()]
    norms = [layer for layers in stored for layer in layers if layer.tracks]
    rows = [row(layer.path, "batch norm", layer.channels) for layer in norms]
    findings = [finding for layers in stored for finding in judge(layers)]
    return Observed.of(path.name if path else "state dict", rows, findings, [])


# --------------------------------------------------------------------------------------------------------- the content


def _state_dicts(
    content: Mapping[Any, Any], name: str = "", depth: int = 0
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The state dicts in a checkpoint by their names in it."""
    tensors = [key for key, value in content.items() if isinstance(key, str) and isinstance(value, Tensor)]
    if any(key.rpartition(".")[2] in NAMES for key in tensors):
        yield name, content
        return
    for key, value in content.items():
        if isinstance(value, Mapping) and depth < DEPTH:
            yield from _state_dicts(value, f"{name}.{key}" if name else str(key), depth + 1)


def _layers(state: Mapping[str, Any], name: str) -> list[Stored]:
    """Every module with one of the five names, in the order of the state dict."""
    modules: dict[str, dict[str, Tensor]] = {}
    for key, value in state.items():
        path, _, last = str(key).rpartition(".")
        if last in NAMES and isinstance(value, Tensor) and _has_data(value):
            path = path.replace("_orig_mod.", "").removesuffix("_orig_mod")
            modules.setdefault(name + path.removeprefix("module."), {})[last] = value
    return [Stored.of(path, tensors) for path, tensors in modules.items()]


def _has_data(t: Tensor) -> bool:
    return t.layout is torch.strided and not (t.is_meta or t.is_quantized or t.is_complex())


def _kind(content: Any) -> str:
    kind = type(content).__name__
    return f"an {kind}" if kind[:1] in "AEIOUaeiou" else f"a {kind}"


# ------------------------------------------------------------------------------------------------------------- files


def _read(path: Path) -> Any:
    """What a file holds. Raises ArgumentError."""
    if not path.exists():
        raise ArgumentError(f"examine: there is no file {path}.")
    if not path.is_file():
        raise ArgumentError(
            f"examine: {path} is a folder, expected a file. Give the file in it that has the weights."
        )
    if not path.stat().st_size:
        raise ArgumentError(f"examine: {path} is empty, expected a checkpoint.")
    read = {".safetensors": _safetensors, ".npz": _npz}.get(path.suffix, _torch)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch and NumPy warn of old formats
            return read(path)
    except (ArgumentError, KeyboardInterrupt):
        raise
    except Exception as error:
        if any(words in str(error) for words in REFUSED):
            raise ArgumentError(
                f"examine: {path} holds more than tensors ({_refused(path, error)}), which would run code, and was not "
                "loaded. Save the state dict alone: torch.save(model.state_dict(), path)."
            ) from None
        raise ArgumentError(
            f"examine: {path} can't be read as a checkpoint ({_reason(error)}). It may "
            "be cut off, or of another format."
        ) from None


def _torch(path: Path) -> Any:
    with torch.serialization.safe_globals(DATA):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))


def _reason(error: Exception) -> str:
    """What went wrong, in a few words: torch and NumPy add how to read the file without safety."""
    words = first_line(error).partition(". ")[0]
    return type(error).__name__ + ("" if "eights" in words else f": {words}")


def _refused(path: Path, error: Exception) -> str:
    """The classes that are no data."""
    try:
        with torch.serialization.safe_globals(DATA):
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # only archives have a list
        names = []
    return ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "") if names else "a program"


def _safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import safe_open
    except ModuleNotFoundError:
        raise ArgumentError(
            "examine: safetensors is missing, install it with pip install 'xhat[doctor]'."
        ) from None
    with safe_open(path, framework="pt", device="cpu") as file:
        return {key: file.get_tensor(key) for key in file.keys() if key.rpartition(".")[2] in NAMES}  # noqa: SIM118


def _npz(path: Path) -> dict[str, Tensor]:
    with np.load(path, allow_pickle=False) as file:
        return {NUMPYS.get(key, key): torch.from_numpy(file[key]) for key in file.files}
