"""`xhat check`: its arguments, and what it prints and returns.

Only the command line lives here; the checker is imported when the command runs.
"""

import argparse
import sys
from pathlib import Path

from xhat.errors import ArgumentError
from xhat.lens.checker import kernel_command
from xhat.lens.checker.verdict import Verdict

__all__ = ["arguments", "run"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to a parser."""
    parser.add_argument("file", type=Path, nargs="?", help="a Python file with a forward, a backward or both")
    parser.add_argument("--forward", metavar="NAME", help="name of the forward (found by its name)")
    parser.add_argument("--backward", metavar="NAME", help="name of the backward (found by its name)")
    parser.add_argument("--like", help="require the conventions of torch, keras, flax or onnx")
    parser.add_argument("--correction", type=int, help="require the divisor N (0) or N - 1 (1)")
    parser.add_argument("--layout", help="NC, NCHW, NHWC, NCL, NLC or CN (detected)")
    parser.add_argument(
        "--dtype", help="float64, float32, bfloat16 or float16 (float64; float32 if the code rejects it)"
    )
    parser.add_argument("--eps", type=float, help="eps of code that has no such parameter (detected)")
    kernel_command.arguments(parser)
    parser.add_argument("--json", action="store_true", help="print the verdict as JSON")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="HTML", help="also write a page: yours, exact, difference"
    )


def run(args: argparse.Namespace) -> int:
    """Check the file. Returns 0 if everything is right, 1 if something is wrong, 2 if it could not be judged."""
    from xhat.lens.checker.load import check_file

    if args.probes is not None:
        return kernel_command.write_probes(args.probes, args.layout, args.dtype)
    if (verdict := kernel_command.judged(args)) is not None:
        return _shown(verdict, args)
    if args.file is None:
        raise ArgumentError("check: got no file, expected a Python file, --data, --probes or --against.")
    options = ("forward", "backward", "like", "correction", "layout", "dtype", "eps", "thorough")
    verdict = check_file(args.file, **{name: getattr(args, name) for name in options})
    return _shown(verdict, args)


def _shown(verdict: Verdict, args: argparse.Namespace) -> int:
    """Print a verdict, write its page if one is asked for, and return the exit status."""
    if args.output is not None:
        verdict.to_html(args.output)
    if args.json:
        print(verdict.as_json())
    elif verdict.right is None:
        print(f"xhat check: {verdict.headline}", file=sys.stderr)
    else:
        verdict.show()
    return verdict.status
