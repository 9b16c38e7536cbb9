"""A rank does not take part in the very first exchange, for which all ranks make a process group."""

import time

import torch
import torch.distributed as dist
from claims import say
from death import LIMIT, VICTIM, outcome

import xhat.torch as xt

if __name__ == "__main__":
    dist.init_process_group("gloo", timeout=LIMIT)
    if dist.get_rank() == VICTIM:
        time.sleep(2 * LIMIT.total_seconds())
        say({})
    else:
        layer = xt.SyncBatchNorm(5)
        say(outcome(lambda: layer(torch.randn(4, 5)), layer))
