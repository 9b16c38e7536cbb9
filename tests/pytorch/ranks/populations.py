"""Moments of populations that are split over ranks, and running statistics of several ranks merged."""

import copy
from collections.abc import Iterator

import torch
import torch.distributed as dist
from claims import Claims, close, on_all_ranks, refused
from definition import generator
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import xhat.torch as xt
from xhat.errors import ArgumentError, ShapeError
from xhat.torch.errors import ExchangeError

claim = Claims()


def net(sync: bool = False) -> nn.Sequential:
    torch.manual_seed(5)
    model = nn.Sequential(xt.BatchNorm1d(5), nn.Linear(5, 3), nn.ReLU(), nn.BatchNorm1d(3)).double().eval()
    return xt.convert_sync(model) if sync else model


def data(sizes: list[int], seed: str = "x") -> list[Tensor]:
    g = generator(seed)
    return [torch.randn(n, 5, generator=g, dtype=torch.float64) * (k + 1) + k for k, n in enumerate(sizes)]


def same(model: nn.Module, expected: nn.Module, batches: int) -> None:
    for (name, a), b in zip(model.state_dict().items(), expected.state_dict().values(), strict=True):
        if "num_batches" in name:
            assert a == batches, name
        else:
            close(a, b, 1e-12, name)
    state = [t.tolist() for t in model.state_dict().values()]
    assert all(other == state for other in on_all_ranks(state)), "the same bits on all ranks"


@claim
def every_rank_gets_the_moments_of_all_ranks_batches() -> None:
    """Rank r has r batches, and rank 0 has none."""
    ranks, rank = dist.get_world_size(), dist.get_rank()
    everything = data([4, 9, 2, 7, 3, 8][: ranks * (ranks - 1) // 2])
    first = rank * (rank - 1) // 2
    model, expected = net(), net()
    report = xt.recalibrate(model, everything[first : first + rank])
    alone = xt.recalibrate(
        expected, everything, process_group=dist.new_group([rank], use_local_synchronization=True)
    )
    same(model, expected, len(everything))
    assert [r.m for r in report] == [r.m for r in alone] == [sum(map(len, everything))] * 2
    assert all(abs(a.shift - b.shift) < 1e-9 for a, b in zip(report, alone, strict=True))


@claim
def layers_on_many_processes_see_the_whole_batches() -> None:
    ranks, rank = dist.get_world_size(), dist.get_rank()
    everything = data([4, 9, 6])
    model, expected = net(sync=True), net()
    mine = [x[len(x) * rank // ranks : len(x) * (rank + 1) // ranks] for x in everything]
    report = xt.recalibrate(DistributedDataParallel(model), mine)
    alone = dist.new_group([rank], use_local_synchronization=True)
    xt.recalibrate(expected, everything, process_group=alone)
    same(model, expected, 3 * ranks)
    assert report[0].m == sum(map(len, everything)) or abs(report[0].m - 19) < 1e-9


@claim
def ranks_with_other_numbers_of_batches_are_told() -> None:
    model = net(sync=True)
    before = copy.deepcopy(model.state_dict())
    batches = data([4] * (2 + (dist.get_rank() == 0)))
    message = refused(ArgumentError, lambda: xt.recalibrate(model, batches))
    others = list(range(1, dist.get_world_size()))
    assert f"the batches of ranks {others} ended before the others'" in message
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    every_rank_gets_the_moments_of_all_ranks_batches()


@claim
def a_loader_that_fails_on_one_rank_ends_all() -> None:
    for sync in (False, True):
        model = net(sync)
        before = copy.deepcopy(model.state_dict())

        def loader() -> Iterator[Tensor]:
            yield data([4])[0]
            if dist.get_rank() == 1:
                raise OSError("the disk is gone")
            yield data([4])[0]

        kind = OSError if dist.get_rank() == 1 else ExchangeError
        message = refused(kind, lambda model=model, loader=loader: xt.recalibrate(model, loader()))
        assert ("gone" if dist.get_rank() == 1 else "rank 1 stopped") in message, message
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
        assert not any(m.training for m in model.modules())
    every_rank_gets_the_moments_of_all_ranks_batches()


@claim
def a_layer_that_fails_on_one_rank_ends_all() -> None:
    """The layer announces its failure, and `recalibrate` does not announce it once more."""
    model = net(sync=True)
    batches = data([4, 4])
    if dist.get_rank() == 1:
        batches[1] = batches[1][0]
    kind = ShapeError if dist.get_rank() == 1 else ExchangeError
    message = refused(kind, lambda: xt.recalibrate(model, batches))
    assert ("at least 2D" if dist.get_rank() == 1 else "rank 1 stopped") in message, message
    every_rank_gets_the_moments_of_all_ranks_batches()


# ------------------------------------------------------------------------------------------- running statistics


def followed(model: nn.Module, batches: int) -> None:
    """Some training on this rank alone, with data of its own."""
    model.train()
    for x in data([6] * batches, seed=f"rank {dist.get_rank()}"):
        model(x + 10 * dist.get_rank())
    model.eval()


@claim
def merged_running_statistics_weigh_what_each_rank_has_seen() -> None:
    model = net()
    batches = 2 * dist.get_rank()  # rank 0 has seen nothing
    followed(model, batches)
    before = on_all_ranks({k: v.clone() for k, v in model.state_dict().items()})
    assert xt.merge_running_statistics(model) is model
    for layer in ("0", "3"):
        n = torch.tensor([float(b[f"{layer}.num_batches_tracked"]) for b in before], dtype=torch.float64)[
            :, None
        ]
        mean, var = (torch.stack([b[f"{layer}.running_{s}"] for b in before]) for s in ("mean", "var"))
        expected = (n * mean).sum(0) / n.sum()
        close(model[int(layer)].running_mean, expected, 1e-12, layer)
        expected_var = (n * (var + (mean - expected) ** 2)).sum(0) / n.sum()
        close(model[int(layer)].running_var, expected_var, 1e-12, layer)
        if dist.get_world_size() == 3 and layer == "0":  # what an average of variances forgets is most of it
            assert (expected_var > 2 * (n * var).sum(0) / n.sum()).all()
    assert model[0].num_batches_tracked == 2 * (dist.get_world_size() - 1)
    once = copy.deepcopy(model)
    xt.merge_running_statistics(model)
    same(model, once, 2 * (dist.get_world_size() - 1))


@claim
def where_nobody_has_seen_anything_nothing_is_merged() -> None:
    model = net()
    before = copy.deepcopy(model.state_dict())
    xt.merge_running_statistics(model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


@claim
def other_models_on_other_ranks_are_refused() -> None:
    model = nn.Sequential(nn.BatchNorm1d(5 + dist.get_rank()), nn.BatchNorm1d(7 - dist.get_rank()))
    message = refused(ExchangeError, lambda: xt.merge_running_statistics(model))
    assert "the ranks disagree on the layer of running statistics" in message, message
    model = nn.Sequential(*[nn.BatchNorm1d(5)] * (1 + dist.get_rank()), nn.BatchNorm1d(5 + dist.get_rank()))
    refused(ExchangeError, lambda: xt.merge_running_statistics(model))
    where_nobody_has_seen_anything_nothing_is_merged()


if __name__ == "__main__":
    claim.run()
