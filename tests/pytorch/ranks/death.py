"""One rank is gone: first it leaves out an exchange, then it is killed in the middle of training."""

import datetime
import os
import signal
import time
import warnings
from typing import Any

import torch
import torch.distributed as dist
from claims import say
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import xhat.torch as xt

LIMIT = datetime.timedelta(seconds=4)
VICTIM, LAST = 1, 3


def outcome(run: Any, layer: nn.Module) -> dict[str, Any]:
    """The error that `run` raises, the time until then, and the layer's state."""
    start = time.monotonic()
    try:
        run()
    except Exception as error:
        kind, message = type(error).__name__, str(error)
    else:
        kind, message = "", "nothing was raised"
    state = [layer.running_mean.tolist(), layer.running_var.tolist(), int(layer.num_batches_tracked)]
    return {"kind": kind, "message": message, "seconds": time.monotonic() - start, "state": state}


def absent() -> dict[str, Any]:
    """The victim does not take part in the exchange."""
    layer = xt.SyncBatchNorm(5, process_group=dist.new_group(timeout=LIMIT))
    x = torch.randn(4, 5)
    layer(x)
    if dist.get_rank() == VICTIM:
        time.sleep(1.25 * LIMIT.total_seconds())
        return {}
    return outcome(lambda: layer(x), layer)


def killed(backward: bool) -> dict[str, Any]:
    """The victim is killed in its last step, before the forward pass or before the backward pass."""
    group = dist.new_group(timeout=LIMIT)
    net = xt.convert_sync(nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 1)), group)
    with warnings.catch_warnings(category=FutureWarning, action="ignore"):
        ddp = DistributedDataParallel(net, process_group=group, broadcast_buffers=False)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)

    def step(last: bool) -> None:
        if last and not backward:
            os.kill(os.getpid(), signal.SIGKILL)
        loss = ddp(torch.randn(4, 6)).square().mean()
        if last:
            os.kill(os.getpid(), signal.SIGKILL)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    for _ in range(LAST):
        step(last=False)
    weights = [p.tolist() for p in net.parameters()]
    result = outcome(lambda: step(dist.get_rank() == VICTIM), net[1])
    return {**result, "weights kept": weights == [p.tolist() for p in net.parameters()]}


if __name__ == "__main__":
    torch.manual_seed(int(os.environ["RANK"]))
    dist.init_process_group("gloo", timeout=20 * LIMIT)
    backward = os.environ["XHAT_BACKWARD"] == "1"
    found: dict[str, Any] = {}
    if not backward:
        found["absent"] = absent()
        dist.monitored_barrier()
    say(found)
    found["killed"] = killed(backward)
    say(found)
    os._exit(0)
