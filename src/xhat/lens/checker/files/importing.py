"""The functions of a file: the file is imported, or its functions are taken from its syntax tree and nothing else runs.

A file in a package is imported as a part of it. `loaded` restores sys.path and sys.modules when it ends.
"""

import contextlib
import importlib
import importlib.util
import inspect
import linecache
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from xhat.lens.checker.calling.adapter import Adapter
from xhat.lens.checker.files.pairs import Function
from xhat.lens.checker.files.stubs import MissingModule, Stubs
from xhat.lens.checker.files.syntax import define
from xhat.lens.checker.files.text import Code

__all__ = ["Loaded", "loaded", "reason_of"]

_MISSING = 25  # modules that may be missing
_LEVELS = 4  # folders above a file that are searched for the modules that it imports


@dataclass
class Loaded:
    """What a file defines: its functions and classes by name, its adapter if it has one, and notes."""

    values: dict[str, Any] = field(default_factory=dict)
    functions: list[Function] = field(default_factory=list)
    adapter: Adapter | None = None
    notes: list[str] = field(default_factory=list)
    by_syntax: bool = False
    problem: str | None = None  # why the file does not import


@contextlib.contextmanager
def loaded(code: Code, *, by_syntax: str | None = None) -> Iterator[Loaded]:
    """The functions of a file, which can be called within this context.

    by_syntax: a reason not to import the file. Notebooks, and files that don't import, are never run as a whole.
    """
    before, paths = dict(sys.modules), list(sys.path)
    name, root = _dotted(code.path)
    sys.path[:0] = dict.fromkeys(str(p) for p in (root, code.path.parent.resolve(), Path.cwd()))
    stubs = Stubs()
    found = Loaded(notes=list(code.notes))
    try:
        with stubs.installed():
            module = _module(code, name)
            found.problem = by_syntax or code.problem
            if not code.notebook and found.problem is None:
                found.problem = _import(code, module, stubs, found)
            if code.notebook or found.problem is not None:
                found.by_syntax = True
                module = _module(code, name)
                define(code, module.__dict__, found.notes)
            stubs.importing = False
            _collect(module, found)
            yield found
    finally:
        sys.path[:] = paths
        for key in [key for key in sys.modules if key not in before]:
            if _is_local(sys.modules[key], (root, code.path.parent.resolve(), Path.cwd())):
                del sys.modules[key]


def _dotted(path: Path) -> tuple[str, Path]:
    """The name of the module of a file, and the folder from which it is imported: the outermost without __init__.py."""
    path = path.resolve()
    root, names = path.parent, [path.stem]
    while (root / "__init__.py").is_file() and root.name.isidentifier() and root != root.parent:
        names.insert(0, root.name)
        root = root.parent
    if len(names) == 1:
        return f"checked_{re.sub(r'[^0-9A-Za-z]', '_', path.stem)}", root
    return ".".join(names[:-1] if path.name == "__init__.py" else names), root


def _is_local(module: Any, folders: tuple[Path, ...]) -> bool:
    file = getattr(module, "__file__", None)
    if isinstance(module, MissingModule):
        return True
    if file is None:  # a package without a file of its own
        return bool(getattr(module, "_bare", False))
    parents = Path(file).parents
    return "site-packages" not in Path(file).parts and any(folder in parents for folder in folders)


def _module(code: Code, name: str) -> ModuleType:
    """An empty module for the file, in sys.modules, with its source where tracebacks look for it."""
    spec = importlib.util.spec_from_file_location(name, code.path) if not code.notebook else None
    module = importlib.util.module_from_spec(spec) if spec is not None else ModuleType(name)
    module.__file__ = str(code.path.absolute())
    module.__dict__["xrange"] = range  # of Python 2
    sys.modules[name] = module
    for part in code.parts:
        lines = part.source.splitlines(keepends=True)
        linecache.cache[part.name] = (len(part.source), None, lines, part.name)
    return module


def _import(code: Code, module: ModuleType, stubs: Stubs, found: Loaded) -> str | None:
    """Run a file as an import does, with what it lacks looked for above it, then replaced. Returns why it failed."""
    (part,) = code.parts
    for _ in range(_MISSING):
        try:
            sys.modules.pop(module.__name__, None)  # the package may import the file itself
            _import_parents(module.__name__, code.path.resolve())
            sys.modules[module.__name__] = module
            exec(compile(part.source, part.name, "exec", dont_inherit=True), module.__dict__)
            return None
        except ModuleNotFoundError as missing:
            name = str(missing.name)
            home = _home_of(name.partition(".")[0], code.path.resolve())
            if home is not None and str(home) not in sys.path:
                sys.path.insert(1, str(home))
            elif missing.name is None or not stubs.add(name):
                return reason_of(missing)
            else:
                found.notes.append(f"{name} is not installed; the file was imported without it.")
        except (Exception, SystemExit) as error:
            return reason_of(error)
    return f"more than {_MISSING} modules are missing"


def reason_of(error: BaseException) -> str:
    """An exception in one line."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else 'no message'}"


def _import_parents(name: str, path: Path) -> None:
    """Import the packages above a module, or make them without their code where it fails, for relative imports."""
    package = name.rpartition(".")[0]
    if not package:
        return
    try:
        importlib.import_module(package)
    except ModuleNotFoundError as missing:
        if missing.name is not None and missing.name.partition(".")[0] != name.partition(".")[0]:
            raise
    except (Exception, SystemExit):
        pass
    names = package.split(".")
    for k in range(1, len(names) + 1):
        dotted = ".".join(names[:k])
        if dotted not in sys.modules:
            bare = ModuleType(dotted)
            bare.__dict__["_bare"] = True
            bare.__path__ = [str(path.parents[len(names) - k])]
            sys.modules[dotted] = bare


def _home_of(name: str, path: Path) -> Path | None:
    """The nearest folder above a file that holds a module or a folder of this name."""
    for folder in path.parents[:_LEVELS]:
        if (folder / f"{name}.py").is_file() or (folder / name).is_dir():
            return folder
        if (folder / ".git").exists():
            break
    return None


def _collect(module: ModuleType, found: Loaded) -> None:
    """The functions and classes that a module defines itself, each under its first name."""
    seen: set[int] = set()
    for name, value in vars(module).items():
        if isinstance(value, Adapter):
            found.adapter = value
        own = callable(value) and getattr(value, "__module__", None) == module.__name__
        if own and id(value) not in seen and not name.startswith("__"):
            seen.add(id(value))
            found.values[name] = value
            found.functions.append(_described(name, value))


def _described(name: str, value: Any) -> Function:
    if inspect.isclass(value):
        own = (base.__name__ for base in value.__mro__[1:] if base.__module__ == value.__module__)
        return Function(name, tuple(dir(value)), True, tuple(own))
    try:
        return Function(name, tuple(inspect.signature(value).parameters))
    except (TypeError, ValueError):
        return Function(name)
