"""`xhat check`: its arguments, and what it prints, writes and returns.

Only the command line lives here; the checker is imported when the command runs.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from xhat.errors import ArgumentError
from xhat.lens.checker.kernels import command as kernel_command

if TYPE_CHECKING:
    from xhat.lens.checker.files.grades import Graded

__all__ = ["arguments", "run"]

_OPTIONS = ("forward", "backward", "like", "correction", "layout", "dtype", "eps", "thorough")
_LIMITS = ("time_limit", "memory", "processes", "imports")


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to a parser."""
    parser.add_argument("files", type=Path, nargs="*", help="Python files, notebooks, or folders of them")
    parser.add_argument(
        "--forward", metavar="NAME", help="name of the forward function, or none (default: guessed)"
    )
    parser.add_argument(
        "--backward", metavar="NAME", help="name of the backward function, or none (default: guessed)"
    )
    parser.add_argument("--like", help="require the conventions of torch, keras, flax or onnx")
    parser.add_argument("--correction", type=int, help="require the divisor N (0) or N - 1 (1)")
    parser.add_argument("--layout", help="NC, NCHW, NHWC, NCL, NLC or CN (default: detected)")
    parser.add_argument(
        "--dtype",
        help="float64, float32, bfloat16 or float16 (default: float64, or float32 if the code rejects it)",
    )
    parser.add_argument("--eps", type=float, help="eps, for code without an eps argument (default: detected)")
    kernel_command.arguments(parser)
    _limits(parser.add_argument_group("limits", "Each file runs in a process of its own, with your rights."))
    _for_teachers(
        parser.add_argument_group(
            "for teachers", "Each file is a submission, and so is each subfolder with all its files."
        )
    )


def _limits(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--time-limit", type=float, default=30, metavar="SECONDS", help="limit for each file (default: 30)"
    )
    group.add_argument(
        "--memory", type=float, default=4, metavar="GB", help="limit for each process, on Linux (default: 4)"
    )
    group.add_argument(
        "--processes", type=int, metavar="N", help="files at a time (default: the number of cores)"
    )
    group.add_argument(
        "--no-import",
        dest="imports",
        action="store_false",
        help="run only the functions of a file, not its other statements",
    )
    group.add_argument("--show-output", action="store_true", help="show what the code printed")


def _for_teachers(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--hint",
        choices=("wrong", "output", "line", "formula", "all"),
        default="all",
        help="show only that something is wrong, which output, which line, or which formula (default: all)",
    )
    group.add_argument(
        "--expect",
        nargs="+",
        default=(),
        metavar="NAME",
        help="names of functions that every submission has to define",
    )
    group.add_argument("--csv", type=Path, metavar="FILE", help="write a row for each submission and output")
    group.add_argument(
        "--gradescope",
        type=Path,
        metavar="PATH",
        help="write results.json (of many submissions, a folder of them)",
    )
    group.add_argument(
        "--points", type=float, help="points of a submission, for --gradescope (default: one for each output)"
    )


def run(args: argparse.Namespace) -> int:
    """Check files. Returns 0 if everything is right, 1 if something is wrong, 2 if something could not be judged."""
    if args.probes is not None:
        return kernel_command.write_probes(args.probes, args.layout, args.dtype)
    if (verdict := kernel_command.judged(args)) is not None:
        return kernel_command.show(verdict, args)
    if not args.files:
        raise ArgumentError("check: got no file, expected Python files, --data, --probes or --against.")
    if args.output is not None and args.hint != "all":
        raise ArgumentError("check: --output shows everything, which --hint hides; omit one of them.")
    return _judged(args)


def _judged(args: argparse.Namespace) -> int:
    """Judge the files, and print and write what is asked for."""
    from xhat.lens.checker.files.grades import write_csv, write_gradescope
    from xhat.lens.checker.files.verdicts import combined
    from xhat.lens.checker.page.render import write_page

    graded = [_hinted(one, args.hint) for one in _graded(args)]
    try:
        if args.csv is not None:
            write_csv(args.csv, graded)
        if args.gradescope is not None:
            write_gradescope(args.gradescope, graded, args.points)
        if args.output is not None:
            write_page([verdict for one in graded for file in one.files for verdict in file], args.output)
    except OSError as error:
        print(f"xhat check: can't write to {error.filename} ({error.strerror}).", file=sys.stderr)
        return 2
    asked = _asked(graded, args)
    status = combined([one.status for one in asked])
    if args.json:
        files = [file.as_dict() for one in asked for file in one.files]
        problems = [{"path": one.name, "status": 2, "problem": one.problem} for one in asked if not one.files]
        print(
            json.dumps(
                {"status": status, "files": files + problems}, indent=2, ensure_ascii=False, default=str
            )
        )
    else:
        _show(asked, graded, args)
    return status


def _graded(args: argparse.Namespace) -> "list[Graded]":
    from xhat.lens.checker.load import check_files

    options = {name: getattr(args, name) for name in (*_OPTIONS, *_LIMITS)}
    options |= {"expect": args.expect}
    if len(args.files) == 1 and not args.files[0].is_dir():
        return check_files(args.files, **options)
    done = 0

    def each(file: object) -> None:
        nonlocal done
        done += 1
        if sys.stderr.isatty():
            print(f"\r{done} files judged", end="", file=sys.stderr)

    found = check_files(args.files, each=each, **options)
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr)
    return found


def _hinted(one: "Graded", level: str) -> "Graded":
    from dataclasses import replace

    from xhat.lens.checker.files.hints import hinted

    return replace(one, files=tuple(hinted(file, level) for file in one.files))


def _asked(graded: "list[Graded]", args: argparse.Namespace) -> "list[Graded]":
    """Without files of a folder that hold no batch norm, except where each of them is somebody's submission."""
    grading = args.csv is not None or args.gradescope is not None
    return graded if grading or args.expect else [one for one in graded if one.files]


def _show(asked: "list[Graded]", graded: "list[Graded]", args: argparse.Namespace) -> None:
    from xhat.lens.checker.files.tables import show_causes, show_submissions

    files = [file for one in asked for file in one.files]
    if len(args.files) == 1 and len(files) == 1 and not args.files[0].is_dir():
        if files[0].verdicts:
            files[0].show()
        else:
            print(f"xhat check: {files[0].headline}", file=sys.stderr)
    elif asked:
        show_submissions(asked)
        show_causes(asked)
    left_out = [one.problem or one.name for one in graded if one not in asked]
    if left_out:
        where = "Nothing was judged" if not asked else f"{len(left_out)} other files were left out"
        more = "" if len(left_out) <= 5 else f" and {len(left_out) - 5} more"
        print(f"{where}: {' '.join(left_out[:5])}{more}", file=sys.stderr)
    elif not asked:
        print("xhat check: the folder has no Python file and no notebook.", file=sys.stderr)
    if args.show_output:
        for file in files:
            print(
                f"\n{file.path} printed:\n{file.output}" if file.output else f"\n{file.path} printed nothing."
            )
