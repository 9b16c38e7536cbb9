"""Training on several ranks with DistributedDataParallel, FSDP2 and torch.compile, against one process."""

import copy
import itertools
import os
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from claims import Claims, close, on_all_ranks, summed
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import xhat.torch as xt

claim = Claims()
ROWS = 12
SIZES = {1: [12], 2: [3, 9], 3: [2, 9, 1]}


def mine(t: Tensor) -> Tensor:
    """This rank's rows."""
    sizes, rank = SIZES[dist.get_world_size()], dist.get_rank()
    return t[sum(sizes[:rank]) : sum(sizes[: rank + 1])]


def net(**options: Any) -> nn.Sequential:
    """A small network in float64, the same on all ranks."""
    torch.manual_seed(3)
    layers = (
        nn.Conv2d(2, 5, 3),
        xt.BatchNorm2d(5, **options),
        nn.Conv2d(5, 3, 2),
        nn.BatchNorm2d(3),
        nn.Flatten(),
    )
    return nn.Sequential(*layers, nn.Linear(27, 4)).double()


def data(steps: int = 3) -> list[tuple[Tensor, Tensor]]:
    g = torch.Generator().manual_seed(1)
    shapes = (ROWS, 2, 6, 6), (ROWS, 4)
    return [tuple(torch.randn(s, generator=g, dtype=torch.float64) for s in shapes) for _ in range(steps)]  # type: ignore[misc]


def train(
    model: nn.Module, share: Callable[[Tensor], Tensor], forwards: int = 1, average: bool = False
) -> list[float]:
    """SGD; the loss is the mean over the whole batch, as the ranks' average makes it. Returns the whole losses."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    ranks = dist.get_world_size() if share is mine else 1
    losses = []
    for x, target in data():
        optimizer.zero_grad()
        # Two forwards before a backward, too: of the batch, and of its mirror image.
        outputs = [model(share(x if k == 0 else x.flip(3))) for k in range(forwards)]
        loss = sum((y - share(target)).square().sum() for y in outputs) * ranks / (ROWS * 4)
        assert isinstance(loss, Tensor)
        loss.backward()
        for p in model.parameters() if average else ():
            p.grad = summed(p.grad) / ranks
        optimizer.step()
        whole = loss.detach() / ranks
        if share is mine:
            dist.all_reduce(whole)
        losses.append(float(whole))
    return losses


def compare(
    model: nn.Module, reference: nn.Module, losses: list[float], expected: list[float], what: Any
) -> None:
    close(torch.tensor(losses), torch.tensor(expected), 1e-12, (what, "losses"))
    for (name, a), b in zip(model.state_dict().items(), reference.state_dict().values(), strict=True):
        whole = a.full_tensor() if hasattr(a, "full_tensor") else a
        close(whole, b, 1e-6 if "running" in name else 1e-11, (what, name))


@claim
def ddp_gives_the_losses_and_weights_of_one_process() -> None:
    for broadcast, unused, forwards in itertools.product((True, False), (True, False), (1, 2)):
        if unused and forwards == 2:
            continue  # torch itself asks for one backward for each forward then
        reference = net()
        expected = train(reference, lambda t: t, forwards)
        model = xt.convert_sync(net())
        with warnings.catch_warnings(
            category=FutureWarning, action="ignore"
        ):  # a name that torch is to change
            ddp = DistributedDataParallel(model, broadcast_buffers=broadcast, find_unused_parameters=unused)
        compare(model, reference, train(ddp, mine, forwards), expected, (broadcast, unused, forwards))
        state = [t.tolist() for t in model.state_dict().values()]
        assert all(other == state for other in on_all_ranks(state)), "the ranks' states have the same bits"


@claim
def parameters_that_a_step_leaves_out_are_found() -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.BatchNorm1d(5), nn.BatchNorm1d(5)

        def forward(self, x: Tensor, left: bool) -> Tensor:
            return self.a(x) if left else self.b(x)

    ddp = DistributedDataParallel(xt.convert_sync(Halves().double()), find_unused_parameters=True)
    for left in (True, False, True):
        x = mine(data()[0][0][:, :, 0, :5].transpose(1, 2)).requires_grad_()
        ddp(x, left).square().sum().backward()
    assert ddp.module.a.num_batches_tracked == 2 and ddp.module.b.num_batches_tracked == 1


@claim
def ranks_may_leave_out_different_parameters() -> None:
    """Then DDP's buckets come at different times between the exchanges, which gloo takes for one another."""

    class Extra(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.bn, self.extra, self.c = (
                nn.Linear(4, 5),
                nn.BatchNorm1d(5),
                nn.Linear(5, 5),
                nn.Linear(5, 1),
            )

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            return self.c(self.bn(h + self.extra(h) if dist.get_rank() == 0 else h))

    net = xt.convert_sync(Extra())
    ddp = DistributedDataParallel(net, find_unused_parameters=True, bucket_cap_mb=1e-5)
    for _ in range(3):
        ddp(torch.randn(6, 4)).square().sum().backward()
    grads = [p.grad.tolist() for p in net.parameters()]
    assert all(other == grads for other in on_all_ranks(grads))


@claim
def fsdp_shards_the_parameters() -> None:
    reference = net()
    expected = train(reference, lambda t: t)
    model = xt.convert_sync(net())
    mesh = dist.init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    compare(model, reference, train(model, mine), expected, "fsdp")


@claim
def a_compiled_model_is_one_graph() -> None:
    reference = net(activation="silu")
    expected = train(reference, lambda t: t)
    model = xt.convert_sync(net(activation="silu"))
    compare(
        model,
        reference,
        train(torch.compile(model, fullgraph=True), mine, average=True),
        expected,
        "compiled",
    )
    assert model[1]._path == "1"  # ranks know it by its path, in a graph too


@claim
def a_compiled_ddp_model_gives_the_same() -> None:
    reference = net()
    expected = train(reference, lambda t: t)
    model = xt.convert_sync(net())
    ddp = torch.compile(DistributedDataParallel(model))
    with warnings.catch_warnings(action="ignore"):  # torch's, about its own graph breaks
        losses = train(ddp, mine)
    compare(model, reference, losses, expected, "compiled ddp")


@claim
def channels_last_stays_channels_last() -> None:
    x = data()[0][0].contiguous(memory_format=torch.channels_last)
    ddp = DistributedDataParallel(xt.SyncBatchNorm(2, momentum=0.99).double())
    part = mine(x).clone(memory_format=torch.channels_last).requires_grad_()
    y = ddp(part)
    y.sin().sum().backward()
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert part.grad.is_contiguous(memory_format=torch.channels_last)
    one = xt.BatchNorm2d(2, momentum=0.99).double()
    close(y, mine(one(x)), 1e-12, "y")


@claim
def half_precision_inputs_and_layers() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        x = data()[0][0].to(dtype)
        layer = xt.SyncBatchNorm(2).to(dtype)
        assert layer.running_var.dtype == torch.float32 and layer.weight.dtype == dtype
        part = mine(x).clone().requires_grad_()
        layer(part).sin().sum().backward()
        one, whole = xt.BatchNorm2d(2), x.float().requires_grad_()
        one(whole).sin().sum().backward()
        close(layer.running_var, one.running_var, 1e-6, dtype)
        close(part.grad, mine(whole.grad), 2e-2, dtype)


@claim
def evaluation_without_running_statistics_is_local() -> None:
    layer = xt.SyncBatchNorm(2, track_running_stats=False).double().eval()
    x = mine(data()[0][0])
    close(layer(x), nn.BatchNorm2d(2, track_running_stats=False).double().eval()(x), 1e-12, "y")


@claim
def a_state_goes_to_torch_s_layer_and_back() -> None:
    model = xt.convert_sync(net())
    train(model, mine)
    theirs = net()
    theirs.load_state_dict(model.state_dict())
    again = xt.convert_sync(copy.deepcopy(theirs)).eval()
    x = data()[1][0]
    close(again(x), model.eval()(x), 1e-12, "y")


if __name__ == "__main__":
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    with warnings.catch_warnings(action="ignore"):  # of its own
        import torch._inductor.compile_fx
    claim.run()
