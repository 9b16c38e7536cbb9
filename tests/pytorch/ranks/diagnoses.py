"""The doctor on many ranks: the moments of all, and the same findings on all."""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from claims import Claims, on_all_ranks, refused
from torch import nn

import xhat.torch as xt
from xhat.errors import ArgumentError
from xhat.torch.errors import ExchangeError

sys.path.insert(0, str(Path(__file__).parents[2] / "doctor"))

from small import batches, far_off, fitted, net, snapshot, squared, taught

claim = Claims()


def parts(everything: list[Any]) -> list[Any]:
    """Of this rank: rank 0 has one batch, the others the rest."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    return everything[:1] if rank == 0 else everything[rank::ranks]


def alone(model: nn.Module, everything: list[Any]) -> xt.Diagnosis:
    group = dist.new_group([dist.get_rank()], use_local_synchronization=True)
    return xt.diagnose(model, everything, squared, progress=False, process_group=group)


def damaged() -> tuple[nn.Module, list[Any]]:
    """A network with one bad layer, and the batches of all ranks in their order."""
    model = fitted(net(), batches(6))
    everything = taught(model, batches(6))
    return far_off(model, "5"), everything


@claim
def all_ranks_diagnose_the_batches_of_all() -> None:
    model, everything = damaged()
    before = snapshot(model)
    mine = parts(everything)
    in_order = [batch for part in on_all_ranks(mine) for batch in part]
    found = xt.diagnose(model, iter(mine), squared, progress=False)
    assert snapshot(model) == before
    expected = alone(model, in_order)
    assert found.batches == len(in_order)
    assert [(f.cause, f.severity, f.layers) for f in found.findings] == [
        (f.cause, f.severity, f.layers) for f in expected.findings
    ]
    assert found.findings[0].layers == ("5",) and found.findings[0].severity == "harmful"
    for mode, value in found.modes.items():
        if mode != "train":  # dropout is drawn by the number of the batch on its rank
            assert abs(value - expected.modes[mode]) < 1e-5, mode  # type: ignore[operator]
    said = found.to_dict()
    assert all(other == said for other in on_all_ranks(said)), "the same on all ranks"


@claim
def ranks_that_differ_are_named() -> None:
    model = net()
    if dist.get_rank() == 1:
        model[5].running_mean.add_(0.5)
    found = xt.diagnose(model, batches(3), progress=False)
    differs = next(f for f in found.findings if f.cause == "ranks-differ")
    assert differs.layers == ("5",)
    assert abs(differs.evidence["shift"] - 0.5) < 1e-4
    said = found.to_dict()["findings"]
    assert all(other == said for other in on_all_ranks(said))


@claim
def a_model_in_ddp_has_the_same_findings_on_all_ranks() -> None:
    model, everything = damaged()
    wrapped = nn.parallel.DistributedDataParallel(model.train())
    before = snapshot(wrapped)
    found = xt.diagnose(wrapped, parts(everything), squared, progress=False)
    assert snapshot(wrapped) == before
    assert found.findings[0].layers == ("5",) and found.findings[0].severity == "harmful"
    said = found.to_dict()
    assert all(other == said for other in on_all_ranks(said))


@claim
def a_failure_on_one_rank_is_an_error_on_all() -> None:
    def data() -> Any:
        yield from batches(2)
        if dist.get_rank() == 0:
            raise OSError("the disk is gone")

    model = net()
    before = snapshot(model)
    refused(
        OSError if dist.get_rank() == 0 else ExchangeError, lambda: xt.diagnose(model, data(), progress=False)
    )
    assert snapshot(model) == before


@claim
def layers_on_many_processes_go_in_step() -> None:
    torch.manual_seed(0)
    model = xt.convert_sync(net())
    found = xt.diagnose(model, batches(3), progress=False)
    assert found.modes["batch"] is not None
    mine = batches(2 + (dist.get_rank() == 0))
    said = refused(ArgumentError, lambda: xt.diagnose(model, mine, progress=False))
    assert "diagnose: the batches of ranks [1] ended before the others'" in said


if __name__ == "__main__":
    claim.run()
