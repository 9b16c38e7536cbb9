"""`check_file` and `check_files`: the batch norms of files, notebooks and folders, found by their names.

`check` judges each of them. Nothing is found, run or judged here.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from xhat.errors import ArgumentError
from xhat.lens.checker.calling.adapter import Adapter
from xhat.lens.checker.check import check_arguments
from xhat.lens.checker.files.grades import Graded, with_missing
from xhat.lens.checker.files.judge import judged
from xhat.lens.checker.files.pool import judge_files
from xhat.lens.checker.files.submissions import Submission, submissions
from xhat.lens.checker.files.verdicts import Verdicts

__all__ = ["check_file", "check_files"]


def check_file(
    path: str | Path, *, forward: str | None = None, backward: str | None = None, **options: Any
) -> Verdicts:
    """Check every batch norm in a Python file or a notebook.

    Parameters
    ----------
    path : str or Path
        The file. It runs in this process; `check_files` has limits for the code of others.
    forward, backward : str, optional
        The names of the functions; "none" stands for no function. By default functions are paired by their names
        (batchnorm_forward with batchnorm_backward and batchnorm_backward_alt, fprop with bprop, fwd with bwd), and
        classes with a forward are layers.
    **options
        The options of `check`.

    Returns
    -------
    Verdicts
        A sequence with one `Verdict` for each pair or layer, which is true if each of them is right. What could not be
        judged has status 2 and its reason.

    Raises
    ------
    ArgumentError
        As `check` does.

    See Also
    --------
    check : The same for functions.

    Notes
    -----
    An `Adapter` at the top level of the file is used. If the file can't be imported, its functions are taken from its
    syntax tree, and nothing else of it is run; notebooks are always read in this way.

    Examples
    --------
    >>> import xhat.lens
    >>> verdicts = xhat.lens.check_file("layers.py")  # doctest: +SKIP
    >>> [verdict.subject for verdict in verdicts]  # doctest: +SKIP
    ['batchnorm_forward and batchnorm_backward']
    """
    return judged(Path(path), forward=forward, backward=backward, **options)


def check_files(
    paths: Sequence[str | Path],
    *,
    forward: str | None = None,
    backward: str | None = None,
    time_limit: float = 30.0,
    memory: float = 4.0,
    processes: int | None = None,
    expect: Sequence[str] = (),
    imports: bool = True,
    each: Callable[[Verdicts], None] | None = None,
    **options: Any,
) -> list[Graded]:
    """Check files, notebooks and folders, each file in a process of its own.

    Parameters
    ----------
    paths : sequence of str or Path
        Files and folders. A submission is a file, or a file or folder in a folder.
    forward, backward : str, optional
        The names of the functions, as for `check_file`.
    time_limit : float, default 30.0
        Seconds after which the process of a file is ended, with everything that it has started.
    memory : float, default 4.0
        Gigabytes that the process of a file may have (on Linux).
    processes : int, optional
        How many processes run at a time; by default the number of cores.
    expect : sequence of str, optional
        Names that every submission has to define.
    imports : bool, default True
        Whether files are imported. If not, functions are taken from syntax trees, and nothing else of a file is run.
    each : callable, optional
        Called with the verdicts of a file when they come.
    **options
        The options of `check`.

    Returns
    -------
    list of Graded
        A result for each submission: ``name``, ``files`` with their verdicts, ``status`` and ``problem``.

    Raises
    ------
    ArgumentError
        For options without a valid value, and for a folder that can't be read.

    Warnings
    --------
    The code runs with the rights of whoever calls: limits are no sandbox.

    Examples
    --------
    >>> import xhat.lens
    >>> graded = xhat.lens.check_files(["submissions/"], time_limit=10)  # doctest: +SKIP
    >>> [(one.name, one.status) for one in graded]  # doctest: +SKIP
    [('ada', 0), ('bob', 1)]
    """
    for name, value in (("time_limit", time_limit), ("memory", memory), ("processes", processes)):
        if value is not None and not 0 < value < float("inf"):
            raise ArgumentError(f"check: {name} is {value!r}, expected a finite number above 0.")
    settings: dict[str, Any] = dict.fromkeys(("like", "correction", "layout", "dtype", "eps")) | options
    adapter = settings.pop("adapter", None) or Adapter()
    settings.pop("thorough", None)
    check_arguments(forward=print, backward=None, adapter=adapter, **settings)
    found = submissions([Path(path) for path in paths], [name for name in (forward, backward) if name])
    files = [file for submission in found for file in submission.files]
    asked = options | {"forward": forward, "backward": backward}
    asked |= {} if imports else {"by_syntax": "as was asked for"}
    found_in: dict[Path, Verdicts] = {}
    todo = judge_files(files, time_limit=time_limit, memory=memory, processes=processes, options=asked)
    for file, verdicts in zip(files, todo, strict=True):
        found_in[file] = verdicts
        if each is not None:
            each(verdicts)
    graded = [Graded(one.name, tuple(map(found_in.__getitem__, one.files)), _nothing(one)) for one in found]
    return [with_missing(one, expect) for one in graded]


def _nothing(submission: Submission) -> str | None:
    """Why a submission has no file that is judged; None if it has one."""
    name, others = submission.name, submission.others
    if submission.files:
        return None
    if len(others) == 1:
        return next(iter(others.values()))
    return (
        f"none of the {len(others)} Python files and notebooks of {name} defines a batch norm by its names."
    )
