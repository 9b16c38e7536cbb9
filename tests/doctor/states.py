"""State dicts for the tests of `xt.examine`: one of a trained network, and changes of it."""

import numpy as np
import torch

C, DEEP = 16, 4


def trained():
    """The state dict of a network whose layers differ, as after training; its least variance is .02."""
    generator = np.random.default_rng(0)
    state = {}
    for k in range(DEEP):
        scale = 0.1 * (k + 1)
        state[f"layer{k}.conv.weight"] = torch.ones(C, C, 1, 1)
        for name, values in {
            "weight": generator.uniform(0.5, 2, C), "bias": generator.normal(scale, scale, C),
            "running_mean": generator.normal(size=C), "running_var": np.linspace(0.02, 3, C),
        }.items():  # fmt: skip
            state[f"layer{k}.bn.{name}"] = torch.from_numpy(values.astype(np.float32))
        state[f"layer{k}.bn.num_batches_tracked"] = torch.tensor(5000)
    return state


def changed(state, ending, change):
    """A copy with the tensors of this name changed."""
    return {name: change(t.clone()) if name.endswith(ending) else t for name, t in state.items()}


def put(index, value):
    def change(t):
        t[index] = value
        return t

    return change


def reset(state, batches=0):
    """As a model into which only parameters were loaded."""
    state = changed(state, "running_mean", torch.zeros_like)
    state = changed(state, "running_var", torch.ones_like)
    return changed(state, "num_batches_tracked", lambda t: torch.tensor(batches))


def without(state, *endings):
    return {name: t for name, t in state.items() if not name.endswith(endings)}


NAMES = tuple(f"layer{k}.bn" for k in range(DEEP))
HARMFUL_RESET = [("statistics-never-updated", "harmful")]
