"""Stand-ins for modules that are not installed: an import of them succeeds, and a use of them is one clear sentence.

A stub is made only for a name whose import has failed, so that code with its own fallback for a missing module keeps
it.
"""

import builtins
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any

__all__ = ["Stubs"]

# Packages for code that runs under Python 2 too, whose names are builtins of Python 3.
_COMPATIBLE = frozenset(("future", "past", "six"))
_RENAMED = {"xrange": "range", "unicode": "str", "raw_input": "input"}


class MissingClass:
    """Stands for a class of a missing module, as a base class in somebody's code; it has no behaviour."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        pass


class Missing:
    """Stands for anything in a missing module. While a file is imported, calls and attributes give more of it."""

    def __init__(self, title: str, stubs: "Stubs") -> None:
        self.__dict__.update(_title=title, _stubs=stubs, __name__=title, __doc__=None)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return self._stubs.use(f"{self._title}.{name}")

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        found = self._stubs.use(self._title)
        # A decorator leaves the function what it is; without its package it can't be more.
        only = arguments[0] if len(arguments) == 1 and not options else None
        return only if callable(only) and not isinstance(only, Missing) else found

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[type, ...]:
        return () if MissingClass in bases else (MissingClass,)

    def __getitem__(self, key: Any) -> Any:
        return self._stubs.use(self._title)

    def __or__(self, other: Any) -> Any:  # in annotations
        return self._stubs.use(self._title)

    __ror__ = __or__


class MissingModule(ModuleType):
    """A module that stands for a missing one."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)
        return self.__dict__["_stubs"].use(f"{self.__name__}.{name}")


class Stubs(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the modules in `names` and what is below them, after all other finders have failed."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.importing = True

    def add(self, name: str) -> bool:
        """Stand in for a module from now on; False if that did not help before."""
        known = name in self.names
        self.names.add(name)
        return not known

    def use(self, title: str) -> Any:
        """More of a missing module while a file is imported; afterwards, ModuleNotFoundError."""
        top, last = title.partition(".")[0], title.rpartition(".")[2]
        if top in _COMPATIBLE and hasattr(builtins, last := _RENAMED.get(last, last)):
            return getattr(builtins, last)
        if not self.importing:
            raise ModuleNotFoundError(f"it uses {title}, and {top} is not installed", name=top)
        return Missing(title, self)

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if not any(name == missing or name.startswith(f"{missing}.") for missing in self.names):
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        module = MissingModule(spec.name)
        module.__dict__.update(_stubs=self, __all__=[])
        return module

    def exec_module(self, module: ModuleType) -> None:
        """A stub has no code."""

    @contextmanager
    def installed(self) -> Iterator["Stubs"]:
        """Within this context, imports find the stubs; afterwards, none is left in sys.modules."""
        sys.meta_path.append(self)
        try:
            yield self
        finally:
            sys.meta_path.remove(self)
            for name in [name for name, module in sys.modules.items() if isinstance(module, MissingModule)]:
                del sys.modules[name]
