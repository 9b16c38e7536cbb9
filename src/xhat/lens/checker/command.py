"""`xhat check`: its arguments, and what it prints and returns.

Only the command line lives here; the checker is imported when the command runs.
"""

import argparse
import sys
from pathlib import Path

__all__ = ["arguments", "run"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the command to a parser."""
    parser.add_argument("file", type=Path, help="a Python file with a forward, a backward or both")
    parser.add_argument("--forward", metavar="NAME", help="name of the forward (found by its name)")
    parser.add_argument("--backward", metavar="NAME", help="name of the backward (found by its name)")
    parser.add_argument("--like", help="require the conventions of torch, keras, flax or onnx")
    parser.add_argument("--correction", type=int, help="require the divisor N (0) or N - 1 (1)")
    parser.add_argument("--layout", help="NC, NCHW, NHWC, NCL, NLC or CN (detected)")
    parser.add_argument(
        "--dtype", help="float64, float32, bfloat16 or float16 (float64; float32 if the code rejects it)"
    )
    parser.add_argument("--eps", type=float, help="eps of code that has no such parameter (detected)")
    parser.add_argument("--json", action="store_true", help="print the verdict as JSON")


def run(args: argparse.Namespace) -> int:
    """Check the file. Returns 0 if everything is right, 1 if something is wrong, 2 if it could not be judged."""
    from xhat.lens.checker.load import check_file

    options = ("forward", "backward", "like", "correction", "layout", "dtype", "eps")
    verdict = check_file(args.file, **{name: getattr(args, name) for name in options})
    if args.json:
        print(verdict.as_json())
    elif verdict.right is None:
        print(f"xhat check: {verdict.headline}", file=sys.stderr)
    else:
        verdict.show()
    return verdict.status
