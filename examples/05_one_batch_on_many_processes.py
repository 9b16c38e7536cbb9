"""The demo's network on many processes, with the losses of one: torchrun --nproc-per-node 3 THIS_FILE

Without torchrun it is one process. The digits of each batch are dealt out; with three ranks, unevenly.
"""

import os

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel

import xhat.torch as xt

rank, ranks = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
if ranks > 1:
    dist.init_process_group("gloo")


def hidden(inputs: int) -> list[nn.Module]:
    """A layer of the demo's network, and its batch norm."""
    return [nn.Linear(inputs, 64, bias=False), nn.BatchNorm1d(64), nn.SiLU()]


torch.manual_seed(0)  # the same weights everywhere
network = nn.Sequential(*hidden(64), *hidden(64), *hidden(64), nn.Linear(64, 10)).double()
network, _ = xt.convert(network)  # batch norm and silu in one pass
xt.convert_sync(network)  # over all processes
model = DistributedDataParallel(network) if ranks > 1 else network
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

digits = load_digits()
x, target = torch.tensor(digits.data / 16), torch.tensor(digits.target)
for step in range(101):
    rows = torch.randperm(len(x))[:100]
    mine = rows[rank::ranks]
    # DDP averages over the ranks: the sum here, times ranks / rows, makes it the mean over the whole batch.
    loss = cross_entropy(model(x[mine]), target[mine], reduction="sum") * ranks / len(rows)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

    whole = loss.detach() / ranks
    if ranks > 1:
        dist.all_reduce(whole)
    if step % 20 == 0 and rank == 0:
        print(f"step {step:3}   loss {whole:.9f}")

xt.recalibrate(
    network, x.tensor_split(ranks)[rank].split(100), progress=False
)  # exact moments for evaluation
with torch.no_grad():
    correct = (network.eval()(x).argmax(1) == target).double().mean()
if rank == 0:
    print(f"right: {correct:.1%}")
assert correct > 0.97
if ranks > 1:
    dist.destroy_process_group()
