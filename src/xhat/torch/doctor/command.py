"""`xhat doctor`: a checkpoint, or what a function returns -> a diagnosis, printed, and the exit status."""

import contextlib
import importlib
import json
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from xhat.errors import ArgumentError, XhatError
from xhat.torch.doctor.checkpoint import examine
from xhat.torch.doctor.diagnose import diagnose
from xhat.torch.doctor.diagnosis import Diagnosis
from xhat.torch.errors import first_line

__all__ = ["doctor"]

FUNCTION = re.compile(r"(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*):(?P<name>[^\W\d]\w*(\.[^\W\d]\w*)*)")


def doctor(target: str, *, as_json: bool = False, output: Path | None = None, progress: bool = True) -> int:
    """Prints the diagnosis of a file, or of what package.module:function returns: (model, batches[, loss]).

    Modules are found in the current folder too. Returns 0 if nothing is harmful, 1 if something is, and 2 if there was
    no batch norm to judge. Raises ArgumentError in place of what the function, the model, the batches or the loss
    raise, OSError if output can't be written.
    """
    with contextlib.redirect_stdout(sys.stderr):  # standard output is for the diagnosis
        diagnosis = _diagnosed(target, progress)
    if output is not None:
        diagnosis.to_html(output)
    print(json.dumps(diagnosis.to_dict(), indent=2) if as_json else diagnosis)
    if not diagnosis.healthy:
        return 1
    return 0 if diagnosis.layers else 2


def _diagnosed(target: str, progress: bool) -> Diagnosis:
    if target.endswith(".py") or ".py:" in target:
        raise ArgumentError(
            f"doctor: {target} is Python's source, expected a checkpoint or package.module:function. "
            "Give a function that returns (model, batches), such as train:model_and_batches."
        )
    function = FUNCTION.fullmatch(target)
    if function is None or Path(target).exists():
        return examine(target)
    with _of_the_user(target):
        model, batches, loss = _returned(target, _found(**function.groupdict())())
    with _of_the_user(f"the model, the batches or the loss of {target}"):
        return diagnose(model, batches, loss, progress=progress)


def _found(module: str, name: str) -> Any:
    """The function, or whatever can be called."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise
        raise ArgumentError(
            f"doctor: there is no module {error.name!r} in {folder} or among the installed packages."
        ) from None
    finally:
        sys.path.remove(folder)
    for part in name.split("."):
        inner = getattr(found, part, None)
        if inner is None:
            own = [
                n for n, v in vars(found).items() if callable(v) and getattr(v, "__module__", None) == module
            ]
            raise ArgumentError(
                f"doctor: {module} has no {name!r}; it has {', '.join(own) or 'no functions'}."
            )
        found = inner
    if not callable(found):
        raise ArgumentError(f"doctor: {module}:{name} is {type(found).__name__}, expected a function.")
    return found


def _returned(target: str, result: Any) -> tuple[Any, Any, Any]:
    """What the function returned, as (model, batches, loss or None)."""
    if not isinstance(result, tuple) or len(result) not in (2, 3):
        got = f"{len(result)} values" if isinstance(result, tuple) else type(result).__name__
        raise ArgumentError(
            f"doctor: {target} returned {got}, expected (model, batches) or (model, batches, loss)."
        )
    model, batches, loss = (*result, None)[:3]
    if not isinstance(model, nn.Module):
        raise ArgumentError(
            f"doctor: {target} returned {type(model).__name__} first, expected a torch.nn.Module: (model, batches)."
        )
    if loss is not None and not callable(loss):
        raise ArgumentError(
            f"doctor: {target} returned {type(loss).__name__} third, expected a function loss(output, batch)."
        )
    return model, batches, loss


@contextlib.contextmanager
def _of_the_user(what: str) -> Iterator[None]:
    """Makes an exception of someone else's code a sentence with its class, its message and its line."""
    try:
        yield
    except XhatError:
        raise
    except (Exception, SystemExit) as error:
        where = _line(error)
        raise ArgumentError(
            f"doctor: {what} raised {type(error).__name__}: {first_line(error)}{where and f' ({where})'}."  # type: ignore[arg-type]
        ) from error


def _line(error: BaseException) -> str:
    """Where it was raised: the innermost line in the current folder, else the innermost of all."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}, line {error.lineno}"
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename != __file__]
    own = [f for f in frames if Path(f.filename).is_relative_to(Path.cwd())] or frames
    return f"{Path(own[-1].filename).name}, line {own[-1].lineno}" if own else ""
