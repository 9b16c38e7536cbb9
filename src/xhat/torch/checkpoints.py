"""State dicts wherever they are: of a module, in memory, or in a file, which is mapped into memory and not read.

What is computed of them must never live here.
"""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xhat.errors import ArgumentError
from xhat.torch.errors import first_line

__all__ = ["STATISTICS", "Source", "batch_norms_among", "state_dict_of"]

Source = nn.Module | Mapping[str, Any] | str | os.PathLike[str]

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def batch_norms_among(names: Iterable[str]) -> list[str]:
    """The prefixes of batch norms among the names of a state dict: those with a running_mean and a running_var.

    A state dict has no classes. torch's instance norm with running statistics has these names too; the same rule is
    right for it.
    """
    known = set(names)
    prefixes = [name.removesuffix("running_mean") for name in known if _ends(name, "running_mean")]
    return sorted(prefix for prefix in prefixes if f"{prefix}running_var" in known)


def _ends(name: str, last: str) -> bool:
    return name == last or name.endswith(f".{last}")


def state_dict_of(source: Source, operation: str) -> Mapping[str, Any]:
    """The state dict of a module, or one that is given, or that of a file (.safetensors, else torch.save's).

    Raises ArgumentError for what has none.
    """
    if isinstance(source, nn.Module):
        found: Any = source.state_dict()
    elif isinstance(source, Mapping):
        found = source
    elif isinstance(source, str | os.PathLike):
        found = _mapped(Path(source), operation)
    else:
        raise ArgumentError(
            f"{operation}: a source is {type(source).__name__}, expected a module, a state dict, or the path of one."
        )
    if not isinstance(found, Mapping) or not any(isinstance(value, Tensor) for value in found.values()):
        inside = (
            [key for key, value in found.items() if _is_state_dict(value)]
            if isinstance(found, Mapping)
            else []
        )
        holds = f"; its item {inside[0]!r} is one: pass that" if inside else ""
        raise ArgumentError(
            f"{operation}: a source holds no tensor at its first level, expected names with tensors{holds}."
        )
    lazy = next((name for name, value in found.items() if nn.parameter.is_lazy(value)), None)
    if lazy is not None:
        raise ArgumentError(
            f"{operation}: {lazy!r} is lazy and has met no input, expected a tensor. Call the model once first."
        )
    return found


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(v, Tensor) for v in value.values())


def _mapped(path: Path, operation: str) -> Any:
    """The contents of a file, of which only what is used comes into memory."""
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except ImportError:
        raise ArgumentError(
            f"{operation}: {path} is in the format of safetensors, which is not installed. Run pip install safetensors."
        ) from None
    except Exception as error:
        raise ArgumentError(
            f"{operation}: {path} can't be read as a state dict ({first_line(error)}). Expected a file of safetensors, "
            "or of torch.save in its present format, with tensors alone."
        ) from error
