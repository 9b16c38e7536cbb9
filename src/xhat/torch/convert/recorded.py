"""Names in a graph: torch.fx records a child or a tensor by the first path to it, whatever name the source used.

What else a source says must never be read here.
"""

from functools import reduce
from typing import Any

from torch import nn

__all__ = ["Recorded"]


class Recorded:
    """A module's children and tensors, and the path by which torch.fx records each."""

    def __init__(self, module: nn.Module) -> None:
        parts = (*module.named_modules(), *module.named_parameters(), *module.named_buffers())
        self._paths = {id(part): path for path, part in parts}

    def __contains__(self, part: Any) -> bool:
        return bool(self._paths.get(id(part)))  # the module itself has an empty path

    def conditions(self, source: str, part: Any) -> tuple[str, ...]:
        """That this expression is still what the path leads to, be it gone; none where both are the same words."""
        path = self._paths[id(part)]
        there = reduce(lambda text, name: f"getattr({text}, {name!r}, None)", path.split("."), "self")
        return () if source in (f"self.{path}", there) else (f"{source} is {there}",)
