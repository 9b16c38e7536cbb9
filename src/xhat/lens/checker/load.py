"""`check_file`: imports a Python file and finds its forward and backward by their names. `check` judges them."""

import contextlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from xhat.lens.checker.adapter import Adapter, Unjudged
from xhat.lens.checker.check import check
from xhat.lens.checker.verdict import Verdict

__all__ = ["check_file"]

_BACKWARD = re.compile(r"back|bwd|grad|(^|_)d(batch|bn|norm)", re.IGNORECASE)
_FORWARD = re.compile(r"forward|fwd|batch_?norm|(^|_)bn(_|$)|normali[sz]e", re.IGNORECASE)
_LAYER = re.compile(r"batch_?norm|bn", re.IGNORECASE)


def check_file(
    path: str | Path, *, forward: str | None = None, backward: str | None = None, **options: Any
) -> Verdict:
    """Check the batch normalization in a file; the options are those of `check`.

    Functions are found by their names (…forward…, batch_norm; …backward…, …grad…) unless they are given; if there are
    none, a class with a forward is used. An `Adapter` at the top level of the file is used. If the file can't be
    imported, or has no such function, the verdict has status 2.
    """
    path = Path(path)
    with contextlib.redirect_stdout(sys.stderr):  # standard output is for the verdict
        try:
            module = _import(path)
            found = _find(module, forward, backward)
        except Unjudged as problem:
            return Verdict(path.name, problem=str(problem))
        adapters = [value for value in vars(module).values() if isinstance(value, Adapter)]
        if len(adapters) == 1:
            options.setdefault("adapter", adapters[0])
        return check(*found, **options)


def _import(path: Path) -> ModuleType:
    if not path.is_file():
        raise Unjudged(f"there is no file {path}.")
    spec = importlib.util.spec_from_file_location(f"checked_{re.sub(r'[^0-9A-Za-z]', '_', path.stem)}", path)
    if spec is None or spec.loader is None:
        raise Unjudged(f"{path.name} is no Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as e:
        text = str(e).strip().splitlines()
        reason = text[0] if text else "no message"
        raise Unjudged(f"{path.name} does not import: {type(e).__name__}: {reason}") from e
    finally:
        sys.path.remove(str(path.parent.resolve()))
    return module


def _find(module: ModuleType, forward: str | None, backward: str | None) -> tuple[Any, Any]:
    """The forward and the backward of a module; one of them may be None."""
    own = {
        name: value
        for name, value in vars(module).items()
        if callable(value) and getattr(value, "__module__", None) == module.__name__
    }
    plain = {name: f for name, f in own.items() if not inspect.isclass(f) and not name.startswith("__")}
    chosen = (
        _given(module, forward, own) if forward else _best(plain, _FORWARD, _BACKWARD),
        _given(module, backward, own) if backward else _best(plain, _BACKWARD, None),
    )
    if chosen == (None, None):
        layers = [
            c for c in own.values() if inspect.isclass(c) and (hasattr(c, "forward") or "__call__" in vars(c))
        ]
        layers.sort(key=lambda c: not _LAYER.search(c.__name__))
        if layers:
            return layers[0], None
        raise Unjudged(
            f"{Path(str(module.__file__)).name} has no function that looks like a forward or a backward "
            f"(it has {', '.join(own) or 'none'}); say which with --forward NAME and --backward NAME."
        )
    return chosen


def _given(module: ModuleType, name: str, own: dict[str, Any]) -> Callable[..., Any]:
    value: Callable[..., Any] | None = own.get(name, getattr(module, name, None))
    if not callable(value):
        raise Unjudged(f"{module.__name__.removeprefix('checked_')} has no function {name!r}.")
    return value


def _best(functions: dict[str, Any], wanted: re.Pattern[str], unwanted: re.Pattern[str] | None) -> Any:
    """The function whose name fits best: public ones before private ones, then those with batch norm in the name."""
    fitting = [name for name in functions if wanted.search(name) and not (unwanted and unwanted.search(name))]
    fitting.sort(key=lambda name: (name.startswith("_"), not _LAYER.search(name)))
    return functions[fitting[0]] if fitting else None
