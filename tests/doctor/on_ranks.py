"""One rank of a case: `python on_ranks.py CASE SEED` prints the causes that rank 0 found, as JSON.

`judging.on_ranks` starts it, and sets the variables that torchrun would set. The ranks agree, or it fails.
"""

import json
import sys

import judging
import torch.distributed as dist

import xhat.torch as xt


def main(name: str, seed: int) -> None:
    """Trains, diagnoses, and compares the findings of the ranks."""
    dist.init_process_group("gloo")
    case = judging.load(name, seed)
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
