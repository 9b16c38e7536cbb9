"""The command line: parses arguments, calls the library and prints. Each command imports only the modules it uses.

A command is a function that adds its arguments and a function that runs it; COMMANDS lists them.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from xhat.errors import XhatError
from xhat.lens.checker import command as check
from xhat.ops import config

__all__ = ["COMMANDS", "main"]

Parser = argparse.ArgumentParser
Args = argparse.Namespace


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command. Returns 0 on success, 1 if the command found something wrong, 2 if it could not run."""
    parser = Parser("xhat", description="Batch normalization with exact and proved gradients.")
    parser.add_argument("--version", action="version", version=f"xhat {config()['version']}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for name, (about, arguments, run) in COMMANDS.items():
        command = commands.add_parser(name, help=about, description=about)
        arguments(command)
        command.set_defaults(run=run, command=name)
    words = list(sys.argv[1:] if argv is None else argv)
    if words and not words[0].startswith("-") and words[0] not in COMMANDS:
        return refuse(f"xhat: there is no command {words[0]!r}, expected one of {', '.join(COMMANDS)}.")
    args = parser.parse_args(words)
    if "run" not in args:
        parser.print_help()
        return 2
    try:
        status: int = args.run(args)
    except XhatError as error:
        return refuse(f"xhat {args.command}: {_without_function(error)}")
    except KeyboardInterrupt:
        return 130
    return status


def refuse(sentence: str) -> int:
    """Print to the standard error why a command could not run; returns its exit status."""
    print(sentence, file=sys.stderr)
    return 2


def _without_function(error: XhatError) -> str:
    """The sentence of an error without the name of the function behind a command, whose own name stands there."""
    function, _, rest = str(error).partition(": ")
    return rest if function in ("check", "derive", "diagnose", "doctor", "examine", "report") else str(error)


def _config_arguments(parser: Parser) -> None:
    pass


def _config(args: Args) -> int:
    import xhat

    for key, value in xhat.config().items():
        print(f"{key:<14} {' '.join(map(str, value)) if isinstance(value, list | tuple) else value}")
    return 0


def _demo_arguments(parser: Parser) -> None:
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("xhat-demo"),
        help="folder for the pictures and the report (default: xhat-demo)",
    )
    parser.add_argument(
        "--seed",
        type=_whole(0, 2**63 - 1),  # what torch.manual_seed takes
        default=0,
        help="seed of the split, the weights and the batches (default: 0)",
    )
    parser.add_argument("--steps", type=_whole(1), default=600, help="training steps per run (default: 600)")


def _demo(args: Args) -> int:
    try:
        from xhat.demo import run
    except ModuleNotFoundError as missing:
        name = (missing.name or "").partition(".")[0]
        if name not in ("matplotlib", "rich", "sklearn", "threadpoolctl"):
            raise
        return refuse(f"xhat demo: {name} is missing, install it with pip install 'xhat[demo]'.")
    try:
        return run(args.out, seed=args.seed, steps=args.steps)
    except OSError as error:
        return refuse(f"xhat demo: can't write to {args.out} ({error.strerror}), choose another --out.")


def _report_arguments(parser: Parser) -> None:
    parser.add_argument("x", type=Path, help="the input, a .npy file")
    parser.add_argument("--dy", type=Path, help="the gradient with respect to the output, same shape as x")
    parser.add_argument("--gamma", type=Path, help="the scale, one value per channel (default: 1)")
    parser.add_argument("--beta", type=Path, help="the shift, one value per channel (default: 0)")
    parser.add_argument(
        "--axis", type=_axes, default=1, help="the channel axis, or several: 1,2 (default: 1)"
    )
    parser.add_argument("--eps", type=float, default=1e-5, help="added to the variance (default: 1e-5)")
    parser.add_argument(
        "--correction", type=float, default=0, help="0: divide by m, 1: by m - 1 (default: 0)"
    )
    parser.add_argument("--title", help="title of the page (default: the name of the file)")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        default=Path("report.html"),
        help="the file to write (default: report.html)",
    )


def _report(args: Args) -> int:
    from xhat.lens import report
    from xhat.lens.reporter.data import read_array

    x = read_array(args.x)
    others = [None if path is None else read_array(path) for path in (args.dy, args.gamma, args.beta)]
    options = {name: getattr(args, name) for name in ("axis", "eps", "correction")}
    try:
        where = report(x, *others, **options, title=args.title or args.x.name, path=args.output)
    except OSError as error:
        return refuse(f"xhat report: can't write {args.output} ({error.strerror}), choose another --output.")
    print(f"The report is in {where.resolve()}")
    return 0


def _axes(text: str) -> int | tuple[int, ...]:
    try:
        axes = tuple(int(axis) for axis in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no axis, expected 1, or several: 1,2") from None
    return axes[0] if len(axes) == 1 else axes


def _whole(least: int, most: int | None = None) -> Callable[[str], int]:
    def whole(text: str) -> int:
        if (value := int(text)) < least:
            raise argparse.ArgumentTypeError(f"{value} is below {least}")
        if most is not None and value > most:
            raise argparse.ArgumentTypeError(f"{value} is above {most}")
        return value

    return whole


def _derive_arguments(parser: Parser) -> None:
    parser.add_argument(
        "display", nargs="?", help="show one display with its reason: path-1, ... (default: a table of all)"
    )
    parser.add_argument(
        "--format", choices=("table", "md"), default="table", help="a table or Markdown (default: table)"
    )
    parser.add_argument("--equation", metavar="LATEX", help="prove or refute this equation")
    parser.add_argument("-o", "--output", type=Path, help="file for the Markdown (default: the terminal)")


def _derive(args: Args) -> int:
    try:
        from xhat.lens import derive

        status: int = derive(args.format, display=args.display, equation=args.equation, output=args.output)
    except ModuleNotFoundError as missing:
        name = (missing.name or "").partition(".")[0]
        if name not in ("mpmath", "rich", "sympy"):
            raise
        return refuse(f"xhat derive: {name} is missing, install it with pip install 'xhat[lens]'.")
    except OSError as error:
        return refuse(f"xhat derive: can't write {args.output} ({error.strerror}), choose another --output.")
    return status


def _doctor_arguments(parser: Parser) -> None:
    parser.add_argument(
        "target",
        help="a checkpoint (.pt, .safetensors, ...), or package.module:function, which returns (model, batches) or "
        "(model, batches, loss)",
    )
    parser.add_argument("--json", action="store_true", help="print the diagnosis as JSON")
    parser.add_argument("-o", "--output", type=Path, metavar="HTML", help="also write it as a page")
    parser.add_argument("--no-progress", dest="progress", action="store_false", help="show no progress bar")


def _doctor(args: Args) -> int:
    try:
        from xhat.torch.doctor.command import doctor
    except ImportError as missing:  # torch is not there, or too old
        if missing.name != "torch":
            raise
        return refuse(f"xhat doctor: {str(missing).removeprefix('xhat.torch: ')}")
    try:
        status: int = doctor(args.target, as_json=args.json, output=args.output, progress=args.progress)
    except OSError as error:
        return refuse(f"xhat doctor: can't write {args.output} ({error.strerror}), choose another --output.")
    return status


COMMANDS = {
    "demo": ("train a network on real digits with closed-form gradients", _demo_arguments, _demo),
    "report": (
        "write an HTML page about the batch, graph and gradients of one layer",
        _report_arguments,
        _report,
    ),
    "check": ("name the mistakes in a batch-norm forward or backward", check.arguments, check.run),
    "doctor": (
        "say why batch norm hurts a model, from its checkpoint or on batches",
        _doctor_arguments,
        _doctor,
    ),
    "derive": ("prove or refute the derivation, equation by equation", _derive_arguments, _derive),
    "config": ("show the versions, the instruction set and the threads", _config_arguments, _config),
}

if __name__ == "__main__":
    sys.exit(main())
