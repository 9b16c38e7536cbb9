"""One file: its pairs are found and checked, one after the other, in this process.

`judged` reports each step as it happens, so that a process that is ended loses nothing of what came before.
"""

import contextlib
import sys
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from xhat.lens.checker.calling.adapter import Unjudged
from xhat.lens.checker.check import check
from xhat.lens.checker.files.importing import Loaded, loaded
from xhat.lens.checker.files.pairs import Found, Pair, find_pairs, named_pair
from xhat.lens.checker.files.text import Code, read_code
from xhat.lens.checker.files.verdicts import Verdicts
from xhat.lens.checker.verdict import Verdict

__all__ = ["Step", "judged"]

Step = Callable[[str, Any], None]
_OTHERS = 12  # names that are listed


def judged(
    path: Path,
    *,
    forward: str | None = None,
    backward: str | None = None,
    by_syntax: str | None = None,
    done: Collection[str] = (),
    step: Step = lambda what, value: None,
    **options: Any,
) -> Verdicts:
    """The verdicts of a file.

    by_syntax: a reason not to import it; done: pairs to leave out, as text.
    `step` is called with "pairs" and their texts when the file is loaded, with "file" and what is known of it, and with
    "verdict" and a verdict for each pair.
    """
    with contextlib.redirect_stdout(sys.stderr):  # standard output is for the verdict
        try:
            code = read_code(path)
            with loaded(code, by_syntax=by_syntax) as file:
                found = _found(code, file, forward, backward)
                step("pairs", [str(pair) for pair in found.pairs])
                result = Verdicts(path.name, (), _notes(file), _others(found))
                step("file", result)
                if file.adapter is not None:
                    options.setdefault("adapter", file.adapter)
                for pair in found.pairs:
                    if str(pair) not in done:
                        verdict = _checked(file, pair, options)
                        step("verdict", verdict)
                        result = replace(result, verdicts=(*result.verdicts, verdict))
        except Unjudged as problem:
            result = Verdicts(path.name, problem=str(problem))
            step("file", result)
    return result


def _checked(file: Loaded, pair: Pair, options: dict[str, Any]) -> Verdict:
    functions = [None if name is None else file.values[name] for name in (pair.forward, pair.backward)]
    verdict = check(*functions, **options)
    # Functions that were made by others, like a partial, have no name of their own.
    return verdict if verdict.subject else replace(verdict, subject=str(pair))


def _found(code: Code, file: Loaded, forward: str | None, backward: str | None) -> Found:
    """The pairs that were asked for, or all of them. Raises Unjudged if there is none."""
    name = code.path.name
    if forward or backward:
        try:
            return Found([named_pair(file.functions, forward, backward)])
        except Unjudged as problem:
            raise Unjudged(f"{name}: {problem}{_failed(name, file)}") from None
    found = find_pairs(file.functions)
    if not found.pairs:
        reasons = [f"{other} {reason}" for other, reason in found.unjudged]
        has = ", ".join((*reasons, *found.others)[:_OTHERS]) or "none"
        if file.problem is not None and not file.functions:
            raise Unjudged(f"{name} does not import: {file.problem}")
        raise Unjudged(
            f"{name} has no function that looks like a forward or a backward (it has {has}); say which with "
            f"--forward NAME and --backward NAME.{_failed(name, file)}"
        )
    return found


def _failed(name: str, file: Loaded) -> str:
    return "" if file.problem is None else f" {name} does not import: {file.problem}"


def _notes(file: Loaded) -> tuple[str, ...]:
    notes = list(file.notes)
    if file.problem is not None:
        notes.append(
            f"The file was not imported ({file.problem}): its functions were taken from its syntax tree, and run "
            "without the rest of it."
        )
    return tuple(notes)


def _others(found: Found) -> tuple[str, ...]:
    """The functions that are not judged: norms with the reason, then the other names."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in found.unjudged:
        by_reason.setdefault(reason, []).append(name)
    texts = []
    for reason, names in by_reason.items():
        verb = (
            reason if len(names) == 1 else reason.replace("is ", "are ", 1).replace("its name", "their names")
        )
        texts.append(f"{', '.join(names)} {verb}")
    if found.others:
        more = len(found.others) - _OTHERS
        listed = ", ".join(found.others[:_OTHERS]) + (f" and {more} more" if more > 0 else "")
        texts.append(f"other functions: {listed}")
    return tuple(texts)
