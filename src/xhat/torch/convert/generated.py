"""Pickling and copying of modules whose class was generated at run time, and so can't be imported by name."""

import copyreg
from collections.abc import Callable, Hashable
from typing import Any

__all__ = ["reduce_generated"]


def reduce_generated(reduced: Any, class_from: Callable[[Any], type], source: Hashable) -> Any:
    """For `__reduce_ex__`: `reduced`, with `class_from(source)` in place of the generated class.

    reduced: what `__reduce_ex__` of the superclass returns for a protocol of at least 2. It is returned as it is if
    the superclass has a reduction of its own. class_from: a function that pickle finds by name.
    """
    if not isinstance(reduced, tuple) or reduced[0] is not copyreg.__newobj__:  # type: ignore[attr-defined]
        return reduced
    _, (_, *args), *rest = reduced
    return (_empty_instance, (class_from, source, *args), *rest)


def _empty_instance(class_from: Callable[[Any], type], source: Hashable, *args: Any) -> Any:
    generated: Any = class_from(source)
    return generated.__new__(generated, *args)
