"""What the programs of the ranks share: the process group, the claims, and the file in which a rank reports.

A claim is a function that every rank runs. Its assertion error, if any, is written to a file, which the test reads.
"""

import datetime
import json
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

LIMIT = 60  # seconds that a collective may take


class Claims:
    """The claims of a program, in the order of their definition."""

    def __init__(self) -> None:
        self.functions: dict[str, Callable[[], None]] = {}

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        self.functions[function.__name__] = function
        return function

    @property
    def names(self) -> list[str]:
        """The names, for the parameters of a test."""
        return list(self.functions)

    def run(self) -> None:
        """Runs all claims on this rank, up to the first that fails."""
        warnings.simplefilter("error")
        dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=LIMIT))
        found: dict[str, str] = {}
        chosen = os.environ.get("XHAT_CLAIMS", "").split() or self.names
        for name, function in ((name, self.functions[name]) for name in chosen):
            torch.manual_seed(0)
            try:
                function()
            except Exception:  # the ranks are no longer in step, so no later claim would mean anything
                say({**found, name: traceback.format_exc()})
                os._exit(0)
            found[name] = ""
            say(found)
        dist.destroy_process_group()


def say(what: Any) -> None:
    """Writes this rank's report for the test."""
    Path(os.environ["XHAT_SAYS"], f"rank{os.environ['RANK']}.json").write_text(json.dumps(what))


def summed(t: Tensor) -> Tensor:
    """The sum over all ranks."""
    total = t.detach().clone()
    dist.all_reduce(total)
    return total


def on_all_ranks(what: Any) -> list[Any]:
    """The values of all ranks."""
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, what)
    return found


def close(got: Tensor, expected: Tensor, bound: float, what: Any) -> None:
    """Asserts |got - expected| <= bound max(1, |expected|)."""
    assert got.shape == expected.shape, f"{what}: {got.shape} for {expected.shape}"
    got, expected = got.detach().double(), expected.detach().double()
    error = float((got - expected).norm() / max(1.0, float(expected.norm())))
    assert error <= bound, f"{what}: {error:.3g} > {bound:g}"


def refused(kind: type[BaseException], function: Callable[[], Any]) -> str:
    """The message of the error that this call raises; it must raise one."""
    try:
        function()
    except kind as error:
        return str(error)
    raise AssertionError(f"no {kind.__name__} was raised")
