"""The PyTorch that xhat.torch needs. Imported before everything else, which would fail without a version's name."""

import re

__all__ = ["OLDEST"]

OLDEST = (2, 11)  # the oldest release that works; docs/torch-versions.md has its limits
_WANTED = ".".join(map(str, OLDEST))
_REMEDY = f"Install one: pip install 'torch>={_WANTED}'."

try:
    import torch
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ModuleNotFoundError(
        f"xhat.torch: torch is not installed, expected version {_WANTED} or newer. {_REMEDY}", name="torch"
    ) from None

_found = getattr(torch, "__version__", None)
if _found is None:  # a file or a folder of this name that stands before PyTorch on the path
    _place = getattr(torch, "__file__", None) or next(iter(getattr(torch, "__path__", ["another module"])))
    raise ImportError(
        f"xhat.torch: {_place} is imported as torch, and has no version, expected PyTorch. Rename it, or start Python "
        "in another folder.",
        name="torch",
    )
_numbers = re.match(r"(\d+)\.(\d+)", str(_found))
if _numbers is None:
    raise ImportError(
        f"xhat.torch: torch is version {_found!r}, expected {_WANTED} or newer. {_REMEDY}", name="torch"
    )
if tuple(map(int, _numbers.groups())) < OLDEST:
    raise ImportError(
        f"xhat.torch: torch is version {_found}, expected {_WANTED} or newer. {_REMEDY}", name="torch"
    )
