"""`xt.fold` on every architecture of timm, torchvision and segmentation_models_pytorch: docs/fold-results.md.

    python -m benchmarks.fold                     what has not been measured yet, into build/fold.jsonl
    python -m benchmarks.fold --minutes 30        no longer than that
    python -m benchmarks.fold --only resnet       names that contain this, also those that have been measured
    python -m benchmarks.fold --parameters 100    architectures of up to so many millions of parameters (default: 30)
    python -m benchmarks.fold --write             write the page from what has been measured

Each architecture runs in a process of its own, on one thread, for at most --seconds (default: 240). An interrupted run
goes on where it was.
"""

import argparse
import json
import multiprocessing
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

import xhat.torch as xt
from benchmarks.fold.networks import Network, inputs_of, networks, with_random_statistics
from benchmarks.fold.page import write

ROOT = Path(__file__).parent.parent.parent
FILE = ROOT / "build" / "fold.jsonl"
REPEATS = 7


def measured(network: Network, limit: float) -> dict[str, Any]:
    """What fold did with this architecture."""
    torch.manual_seed(0)
    try:
        with torch.device("meta"):
            sketch = network.build()
    except RuntimeError:  # its initialization needs numbers
        sketch = network.build()
    parameters = sum(p.numel() for p in sketch.parameters())
    norms = sum(isinstance(getattr(m, "running_mean", None), torch.Tensor) for m in sketch.modules())
    row: dict[str, Any] = {"parameters": parameters, "norms": norms}
    if not norms or parameters > limit * 1e6:
        return row
    built = network.build()
    model, given = with_random_statistics(built, inputs_of(network, built))
    start = time.perf_counter()
    folded, changes = xt.fold(model, given)
    row["seconds"] = time.perf_counter() - start
    done = [c for c in changes if c.folded]
    row |= {
        "norms": len(changes),
        "folded": len(done),
        "left": [(c.path, c.reason) for c in changes if not c.folded],
        "error": max((c.error / c.values for c in done if c.values), default=0.0),
        "unfolded": max((c.unfolded / c.values for c in done if c.values), default=0.0),
        "bound": max((c.bound / c.values for c in done if c.values), default=0.0),
        "input": str([tuple(x.shape) for x in given if isinstance(x, torch.Tensor)] or "images"),
    }
    row["ratio"] = ratio(model, folded, given)
    return row


def ratio(model: nn.Module, folded: nn.Module, given: Any) -> float:
    """The least time of the folded model over the least time of the model, of runs that alternate."""
    least = [float("inf")] * 2
    with torch.no_grad():
        for repeat in range(REPEATS + 1):
            for k, m in enumerate((model, folded)):
                start = time.perf_counter()
                m(*given)
                if repeat:
                    least[k] = min(least[k], time.perf_counter() - start)
    return least[1] / least[0]


def in_child(network: Network, limit: float, pipe: Any) -> None:
    """Sends the row, or what went wrong."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    try:
        row = measured(network, limit)
    except Exception as error:
        row = {"problem": f"{type(error).__name__}: {str(error).strip().splitlines()[:1]}"}
    pipe.send(row)


def row_of(network: Network, limit: float, seconds: float) -> dict[str, Any]:
    """The row of one architecture, from a process that is ended after this time."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    child = context.Process(target=in_child, args=(network, limit, theirs))
    child.start()
    theirs.close()
    row: dict[str, Any] = {"problem": f"not done after {seconds:.0f} s"}
    try:
        if ours.poll(seconds):
            row = ours.recv()
    except EOFError:
        row = {"problem": "its process ended, perhaps for want of memory"}
    child.kill()
    child.join()
    return {"package": network.package, "name": network.name, **row}


def main() -> None:
    """Measures what is missing, then writes the page if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--parameters", type=float, default=30)
    parser.add_argument("--only")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    FILE.parent.mkdir(exist_ok=True)
    rows = [json.loads(line) for line in FILE.read_text().splitlines()] if FILE.exists() else []
    done = {(row["package"], row["name"]) for row in rows}
    if options.write:
        write(rows)
        return
    end = time.monotonic() + 60 * options.minutes
    for network in networks():
        wanted = options.only in network.name if options.only else network[:2] not in done
        if not wanted or time.monotonic() > end:
            continue
        row = row_of(network, options.parameters, options.seconds)
        with FILE.open("a") as file:
            file.write(json.dumps(row) + "\n")
        shown = {k: f"{v:.2g}" if isinstance(v, float) else v for k, v in row.items() if k != "left"}
        print(*shown.values(), len(row.get("left", [])), flush=True)


if __name__ == "__main__":
    main()
