"""`python -m benchmarks.accumulate`: memory and time of `xt.accumulate` beside the whole batch and plain accumulation.

Forms: the whole batch; the same with its blocks recomputed (activation checkpointing); plain accumulation, in which
each micro-batch has statistics of its own; and `xt.accumulate`. Gradients are compared with those of the whole batch in
float64 first. Memory is the peak of the resident set above that before the step, of a process of its own whose second
step is measured (Linux). Times are least processor times of steps that alternate between the forms, as ratios to the
whole batch: on a machine that others use, elapsed time is theirs too.
"""

import argparse
import tempfile
import warnings

import torch

from benchmarks.accumulate.measure import NETWORKS, rows
from benchmarks.harness.machine import machine


def main() -> None:
    """Prints the machine, and a table in Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--parts", type=int, default=8, help="micro-batches")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=NETWORKS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(", ".join(f"{key} {value}" for key, value in machine(1).items()))
    print(f"\n{options.parts} micro-batches, one thread, float32\n")
    print(
        "| network | step | peak | ratio | time | gradients off by (float64) |\n|---|---|---:|---:|---:|---:|"
    )
    with tempfile.TemporaryDirectory() as folder:
        for name in [options.only] if options.only else NETWORKS:
            print("\n".join(rows(name, options.parts, options.repeats, folder)), flush=True)


if __name__ == "__main__":
    main()
