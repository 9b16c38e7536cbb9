"""`python -m benchmarks.gpu`: verify on the GPU, then time, within ten minutes; the table is printed last.

    python -m benchmarks.gpu [--minutes 8] [--output gpu.csv]
    python -m benchmarks.gpu --smoke        # the checks at small sizes, without a GPU, by Triton's interpreter
    python -m benchmarks.gpu --host         # microseconds of a call on the host, without a GPU

Times are medians of event times, with the L2 cache cleared before each call, in microseconds, and as multiples of what
a copy of the same bytes takes on this card.
"""

import argparse
import csv
import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.gpu.no_kernels import stand_in_if_missing


def main() -> int:
    """Returns 0 if every result is right, 1 if one is wrong, 2 where it can't run."""
    parser = argparse.ArgumentParser("python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=8, help="no case starts after this time (8)")
    parser.add_argument("--output", type=Path, default=Path("gpu.csv"), help="the table as CSV (gpu.csv)")
    parser.add_argument("--host", action="store_true", help="time what a call costs the host, without a GPU")
    parser.add_argument("--smoke", action="store_true", help="check small cases without a GPU")
    arguments = parser.parse_args()
    if arguments.smoke:
        os.environ["TRITON_INTERPRET"] = "1"
    try:
        import torch
        import triton
    except ModuleNotFoundError as missing:
        print(f"benchmarks.gpu: {missing.name} is missing, expected PyTorch with Triton.", file=sys.stderr)
        return 2
    if stand_in_if_missing():
        print("xhat's compiled kernels are missing: its Triton kernels run without them", flush=True)
    if arguments.host:
        from benchmarks.gpu.host import host_times

        for name, took in host_times().items():
            print(f"{name}: {took:.0f} us")
        return 0
    if not arguments.smoke and not torch.cuda.is_available():
        print("benchmarks.gpu: PyTorch sees no GPU. --smoke checks the kernels without one.", file=sys.stderr)
        return 2
    if arguments.smoke:
        return _checked([(4, 8, 6, 4), (3, 16, 7, 7)], "cpu")
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}, triton {triton.__version__}", flush=True
    )
    wrong = _checked(None, "cuda")
    _timed(time.monotonic() + 60 * arguments.minutes, arguments.output)
    return wrong


def _checked(shapes: Any, device: str) -> int:
    from benchmarks.gpu.cases import CHECKED
    from benchmarks.gpu.check import verify

    cases = CHECKED
    if shapes is not None:
        cases = list(dict.fromkeys(c._replace(shape=s) for c in CHECKED for s in shapes if c.offset < 1e6))
    failed = 0
    for case in cases:
        wrong = verify(case, device)
        failed += bool(wrong)
        print("FAIL" if wrong else "ok  ", case.label, f"offset {case.offset:g}", *wrong, flush=True)
    print(f"{len(cases) - failed} of {len(cases)} cases are right")
    return int(failed > 0)


def _timed(until: float, output: Path) -> None:
    import torch
    from triton.testing import do_bench

    from benchmarks.gpu.cases import TIMED
    from benchmarks.gpu.step import steps

    def microseconds(call: Any) -> float:
        return float(do_bench(call, warmup=10, rep=60, return_mode="median")) * 1e3

    def copied(nbytes: int = 512 << 20) -> float:
        source = torch.empty(nbytes, dtype=torch.uint8, device="cuda")
        target = torch.empty_like(source)
        return microseconds(lambda: target.copy_(source)) / (2 * nbytes)

    per_byte = copied()
    print(f"a copy moves {1e-6 / per_byte:.2f} TB/s", flush=True)
    rows: list[dict[str, Any]] = []
    for case in TIMED:
        if time.monotonic() > until:
            print(f"out of time before {case.label}")
            break
        rows.append(_row(case, microseconds, per_byte))
        with output.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(dict.fromkeys(key for r in rows for key in r)))
            writer.writeheader()
            writer.writerows(rows)
    _print(rows)
    if time.monotonic() < until:
        for name, step in steps("cuda").items():
            print(
                f"a step of ResNet-50 (bfloat16, channels last, batch 64), {name}: {microseconds(step) / 1e3:.1f} ms"
            )


def _row(case: Any, microseconds: Any, per_byte: float) -> dict[str, Any]:
    """The times of every way to compute a case, and as multiples of a copy of the same bytes."""
    from benchmarks.gpu.cases import TENSORS, made
    from benchmarks.gpu.ways import WAYS, backward_of

    t, row = made(case, "cuda"), {"case": case.label, "MB": case.nbytes / 1e6}
    forward_floor, backward_floor = (n * case.nbytes * per_byte for n in TENSORS[case.kind])
    for name, way in WAYS.items():
        if name == "compile" and case.dtype != "bfloat16":
            continue
        forward = way(case)
        try:
            backward = backward_of(forward, t)
        except Exception as error:  # a peer that is not installed, or does not run here
            if name in ("xhat", "composed"):
                raise
            print(f"{case.label}: {name} is left out: {error}", flush=True)
            continue
        for half, call, floor in (("forward", lambda f=forward: f(t), forward_floor),
                                  ("backward", backward, backward_floor)):  # fmt: skip
            row[f"{name} {half}"] = took = microseconds(call)
            row[f"{name} {half} / floor"] = took / floor
    return row


def _print(rows: list[dict[str, Any]]) -> None:
    print("microseconds, forward / backward; in brackets multiples of a copy of the same bytes")
    for row in rows:
        cells = [
            f"{name} {row[f'{name} forward']:.0f} / {row[f'{name} backward']:.0f} "
            f"({row[f'{name} forward / floor']:.2f} / {row[f'{name} backward / floor']:.2f})"
            for name in ("xhat", "composed", "cudnn", "native", "compile", "flaggems")
            if f"{name} forward" in row
        ]
        print(f"{row['case']:48} {row['MB']:7.1f} MB  {'  '.join(cells)}")


if __name__ == "__main__":
    sys.exit(main())
