"""The verdicts of one file as data, and their presentation: `Verdicts`. Nothing is judged here.

`revived` makes a verdict from its JSON, in which it comes from another process.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, get_args, get_origin, get_type_hints, overload

from xhat.lens.checker.verdict import Verdict

__all__ = ["Verdicts", "combined", "revived"]


@dataclass(frozen=True, repr=False, eq=False)
class Verdicts(Sequence[Verdict]):
    """The verdicts of a file, a sequence with one `Verdict` for each pair of functions or layer.

    It is true if each of them is right. Print it for all that was found.

    Attributes
    ----------
    path : str
        The file.
    verdicts : tuple of Verdict
        The verdicts.
    notes : tuple of str
        How the file was read.
    others : tuple of str
        Its functions that were not called, with the reason where their names speak of a norm.
    problem : str or None
        Why nothing could be judged.
    output : str
        What the code printed.
    """

    path: str
    verdicts: tuple[Verdict, ...] = ()
    notes: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    problem: str | None = None
    output: str = ""

    @overload
    def __getitem__(self, index: int) -> Verdict: ...

    @overload
    def __getitem__(self, index: slice) -> Sequence[Verdict]: ...

    def __getitem__(self, index: int | slice) -> Verdict | Sequence[Verdict]:
        return self.verdicts[index]

    def __iter__(self) -> Iterator[Verdict]:
        return iter(self.verdicts)

    def __len__(self) -> int:
        return len(self.verdicts)

    @property
    def right(self) -> bool | None:
        """False if anything is wrong; else None if anything was not judged; else True."""
        answers = [verdict.right for verdict in self.verdicts]
        if False in answers:
            return False
        return None if self.problem or None in answers or not answers else True

    def __bool__(self) -> bool:
        return self.right is True

    @property
    def status(self) -> int:
        """The exit status: 0 right, 1 something is wrong, 2 something was not judged and nothing is wrong."""
        return {True: 0, False: 1, None: 2}[self.right]

    @property
    def names(self) -> frozenset[str]:
        """The names of all mistakes found."""
        return frozenset(name for verdict in self.verdicts for name in verdict.names)

    @property
    def headline(self) -> str:
        """The verdict in one sentence."""
        if len(self.verdicts) == 1 and not self.problem:
            return self.verdicts[0].headline
        if not self.verdicts:
            return f"{self.path}: could not be judged: {self.problem or 'nothing was run.'}"
        counts = []
        for answer, title in ((True, "right"), (False, "wrong"), (None, "not judged")):
            subjects = [verdict.subject for verdict in self.verdicts if verdict.right is answer]
            if subjects:
                counts.append(f"{title}: {', '.join(subjects)}")
        counts += [self.problem.rstrip(".")] if self.problem else []
        return f"{self.path}: {'; '.join(counts)}."

    def __repr__(self) -> str:
        return f"<{self.headline}>" if len(self.verdicts) != 1 else repr(self.verdicts[0])

    def __str__(self) -> str:
        texts = [str(verdict) for verdict in self.verdicts]
        if len(texts) != 1 or self.problem:
            texts.append(self.headline)
        return "\n\n".join(texts) + "".join(f"\n{line}" for line in self.remarks())

    def remarks(self) -> list[str]:
        """What was not judged beside the verdicts, and the notes."""
        return ([f"Not judged: {'; '.join(self.others)}."] if self.others else []) + list(self.notes)

    def as_dict(self) -> dict[str, Any]:
        """Everything, in types of JSON."""
        own = {name: getattr(self, name) for name in ("path", "status", "headline", "right", "problem")}
        lists = {"notes": list(self.notes), "others": list(self.others)}
        return own | {"verdicts": [verdict.as_dict() for verdict in self.verdicts], **lists}

    def as_json(self) -> str:
        return json.dumps(self.as_dict(), indent=2, ensure_ascii=False, default=str)

    def show(self) -> None:
        """Print every verdict in the terminal."""
        for verdict in self.verdicts:
            verdict.show()
            if len(self.verdicts) > 1:
                print()
        if len(self.verdicts) != 1 or self.problem:
            print(self.headline)
        for line in self.remarks():
            print(f"  {line}")


def combined(statuses: Sequence[int]) -> int:
    """One exit status for many: 1 if one of them is 1, else 2 if one of them is 2 or there is none, else 0."""
    return 1 if 1 in statuses else 2 if 2 in statuses or not statuses else 0


def revived(kind: type, data: Any) -> Any:
    """An object of a dataclass from what `asdict` made of it."""
    hints = get_type_hints(kind)
    given = {
        field.name: _revived(hints[field.name], data[field.name])
        for field in fields(kind)
        if field.name in data
    }
    return kind(**given)


def _revived(hint: Any, value: Any) -> Any:
    if is_dataclass(hint) and isinstance(value, dict):
        return revived(hint, value)  # type: ignore[arg-type]
    if get_origin(hint) is tuple and isinstance(value, (list, tuple)):
        return tuple(_revived(get_args(hint)[0], item) for item in value)
    return value
