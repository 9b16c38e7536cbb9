"""One rank of a case: `python on_ranks.py CASE SEED` prints the causes that rank 0 found, as JSON.

The variables of torchrun are set by who starts it. The ranks agree, or it fails.
"""

import json
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

import judging
import torch.distributed as dist

import xhat.torch as xt


def main(name: str, seed: int) -> None:
    """Trains, diagnoses, and compares the findings of the ranks."""
    dist.init_process_group("gloo")
    _, case = judging.load(name, seed)
    group = dist.group.WORLD
    found = xt.diagnose(case.model, case.batches, case.loss, progress=False, process_group=group).to_dict()
    everyone: list[object] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, found["findings"])
    assert all(other == everyone[0] for other in everyone), everyone
    if dist.get_rank() == 0:
        print(json.dumps(everyone[0]))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
