"""The PyTorch that xhat.torch needs. Imported before everything else, which would fail without a version's name."""

__all__ = ["OLDEST"]

OLDEST = (2, 11)  # the oldest release that works; docs/torch-versions.md has its limits
_WANTED = ".".join(map(str, OLDEST))
_REMEDY = f"Install one: pip install 'torch>={_WANTED}'."

try:
    from torch import __version__ as _found
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise ModuleNotFoundError(
        f"xhat.torch: torch is not installed, expected version {_WANTED} or newer. {_REMEDY}", name="torch"
    ) from None

if tuple(map(int, _found.split(".")[:2])) < OLDEST:
    raise ImportError(
        f"xhat.torch: torch is version {_found}, expected {_WANTED} or newer. {_REMEDY}", name="torch"
    )
