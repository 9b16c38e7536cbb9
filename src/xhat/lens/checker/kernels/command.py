"""The options of `xhat check` for kernel authors: --data, --probes and --against.

Only the command line lives here; `data`, `crossing` and `check` do the work.
"""

import argparse
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from xhat.errors import ArgumentError
from xhat.lens.checker.verdict import Verdict

__all__ = ["arguments", "imported", "judged", "show", "write_probes"]

_ASKED = """{path} has {cases} cases for layout {layout} in {dtype}: run the kernel on x, gamma, beta and dy of each,
and save y, dx, dgamma and dbeta under the same case ("{first}/y", ...), in this file or in another one. Then:
    xhat check --data {path} results.npz"""


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add these options to a parser, and those about what is written."""
    parser.add_argument(
        "--data",
        nargs="+",
        type=Path,
        metavar="DUMP",
        help="judge arrays instead of code: .npz, .safetensors, folders of .npy; later ones add to earlier ones",
    )
    parser.add_argument(
        "--probes", type=Path, metavar="NPZ", help="write inputs for a kernel in any language: see --data"
    )
    parser.add_argument(
        "--against", metavar="NAME", help="check an importable object, such as torch.nn.BatchNorm2d"
    )
    parser.add_argument("--json", action="store_true", help="print the verdicts as JSON")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="HTML", help="write a page: yours, exact, difference"
    )
    parser.add_argument(
        "--thorough", action="store_true", help="more sizes, and float32 and 16 bits besides float64"
    )


def write_probes(path: Path, layout: str | None, dtype: str | None) -> int:
    """Write the probes, and print what to do with them. Raises ArgumentError."""
    from xhat.lens.checker.diagnosis.crossing import probes

    layout, dtype = layout or "NCHW", dtype or "float32"
    path = path if path.suffix == ".npz" else path.with_name(path.name + ".npz")  # as numpy.savez names it
    try:
        written = probes(layout=layout, dtype=dtype, path=path)
    except OSError as error:
        raise ArgumentError(
            f"check: can't write {path} ({error.strerror}), choose another file for --probes."
        ) from None
    cases = list(dict.fromkeys(name.partition("/")[0] for name in written))
    print(_ASKED.format(path=path, cases=len(cases), layout=layout, dtype=dtype, first=cases[0]))
    return 0


def judged(args: argparse.Namespace) -> Verdict | None:
    """The verdict about a dump or an importable object; None if neither is given. Raises ArgumentError and others."""
    if args.data is not None:
        from xhat.lens.checker.kernels.data import check_data
        from xhat.lens.checker.kernels.dumps import read_dumps

        options = {name: getattr(args, name) for name in ("layout", "eps", "correction", "dtype")}
        return check_data(read_dumps(args.data), **options)
    if args.against is not None:
        from xhat.lens.checker.check import check

        names = ("like", "correction", "layout", "dtype", "eps", "thorough")
        return check(imported(args.against), **{name: getattr(args, name) for name in names})
    return None


def show(verdict: Verdict, args: argparse.Namespace) -> int:
    """Print a verdict, write its page if one is asked for, and return the exit status. Raises ArgumentError."""
    if args.output is not None:
        try:
            verdict.to_html(args.output)
        except OSError as error:
            raise ArgumentError(
                f"check: can't write {args.output} ({error.strerror}), choose another --output."
            ) from None
    if args.json:
        print(verdict.as_json())
    elif verdict.problem is not None:
        print(f"xhat check: {verdict.headline}", file=sys.stderr)
    else:
        verdict.show()
    return verdict.status


def imported(name: str) -> Any:
    """The object of a dotted name: a class or a function of a module. Raises ArgumentError if there is none."""
    words = name.replace(":", ".").split(".")
    for count in range(len(words) - 1, 0, -1):
        try:
            found: Any = import_module(".".join(words[:count]))
        except ModuleNotFoundError as missing:
            if not f"{'.'.join(words)}.".startswith(f"{missing.name}."):
                raise ArgumentError(
                    f"check: {name} needs the package {missing.name}, which is not installed."
                ) from None
            continue
        for word in words[count:]:
            found = getattr(found, word, None)
        if callable(found):
            return found
    raise ArgumentError(
        f"check: there is no object {name}, expected the dotted name of a class or function, "
        "such as torch.nn.BatchNorm2d."
    )
