"""One network trained on several processes, with the losses of one: torchrun --nproc-per-node 3 THIS_FILE

Without torchrun it is one process. Each rank takes every n-th image of a batch; 3 ranks get unequal numbers of them.
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
xt.convert_sync(network)  # statistics of the whole batch, over all ranks
model = DistributedDataParallel(network) if ranks > 1 else network
optimizer = torch.optim.SGD(model.parameters(), lr=0.2)

digits = load_digits()
x, target = torch.tensor(digits.data / 16), torch.tensor(digits.target)
for step in range(41):
    rows = torch.randperm(len(x))[:100]
    mine = rows[rank::ranks]
    # DDP averages over the ranks, so (sum here) * ranks / rows gives the gradient of the whole batch's mean loss.
    loss = cross_entropy(model(x[mine]), target[mine], reduction="sum") * ranks / len(rows)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()

    whole = loss.detach() / ranks
    if ranks > 1:
        dist.all_reduce(whole)
    if step % 10 == 0 and rank == 0:
        print(f"step {step:3}   loss {whole:.9f}")

# The exact moments of all digits, for evaluation: each rank takes its part of the same batches.
xt.recalibrate(network, [batch[rank::ranks] for batch in x.split(100)], progress=False)
with torch.no_grad():
    correct = (network.eval()(x).argmax(1) == target).double().mean()
if rank == 0:
    print(f"right: {correct:.1%}")
assert correct > 0.97
if ranks > 1:
    dist.destroy_process_group()
