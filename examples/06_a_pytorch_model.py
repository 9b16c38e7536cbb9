"""A PyTorch model, converted: the same results, and four problems of torch's layers solved."""

import copy

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import xhat.torch as xt

torch.manual_seed(0)
theirs = nn.Sequential(nn.Conv1d(5, 8, 3, padding=1), nn.BatchNorm1d(8), nn.SiLU(), nn.Conv1d(8, 4, 1))
ours, changes = xt.convert(copy.deepcopy(theirs))
print(*changes)

x = torch.randn(16, 5, 20)
print("largest difference in y", (ours(x) - theirs(x)).abs().max().item())
torch.testing.assert_close(ours(x), theirs(x))

# 1. Checkpointing computes a batch twice; it is counted once.
for name, model in (("torch's", theirs), ("ours", ours)):
    before = int(model[1].num_batches_tracked)
    checkpoint(model, x, use_reentrant=False).sum().backward()
    print(f"a checkpointed batch counts {model[1].num_batches_tracked - before} times in {name}")

# 2. Padding: the statistics are those of the positions where the mask is true; padding may even be NaN.
mask = torch.arange(20) < torch.randint(10, 20, (16, 1, 1))  # sequences of different lengths
layer = xt.BatchNorm1d(5, momentum=1.0)
layer(torch.where(mask, x, torch.nan), mask=mask)
valid = x.transpose(1, 2)[mask[:, 0]]
print("running mean, and the mean without padding:", layer.running_mean[0].item(), valid.mean(0)[0].item())
torch.testing.assert_close(layer.running_mean, valid.mean(0))

# 3. A batch with infinity: the running statistics of these channels stay, and it is counted.
layer = xt.BatchNorm1d(5, nonfinite="skip")
x[3, 2, 7] = torch.inf
layer(x)
print("left out:", layer.skipped.tolist())
assert layer.running_var.isfinite().all()

# 4. A frozen layer stays frozen in training mode; and an error names the layer.
xt.freeze(ours).train()
print(ours[1])
try:
    xt.unfreeze(ours)[:2](torch.randn(1, 5, 1))
except ValueError as error:
    print(error)
