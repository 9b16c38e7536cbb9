"""A program: one batch on eight devices of the CPU, by every way that JAX has; prints errors and collectives as JSON.

Parts are unequal: device 1 has a value fewer than others, devices 2 and 5 have nothing.
"""

import json
import os
import re
from typing import Any

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 --xla_cpu_multi_thread_eigen=false"

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax_beside import numbers, relative

import xhat.jax as xj

try:
    from jax import shard_map
except ImportError:  # before 0.8
    from jax.experimental.shard_map import shard_map

C = 3
GAMMA, BETA, T = numbers((C,), 2), numbers((C,), 3), numbers((16, 2, C), 1)
MASK = np.ones((16, 2, 1), np.float32)
MASK[2, 1:] = 0
MASK[4:6] = MASK[10:12] = 0
GROUPS = [[0, 1, 2, 3], [4, 5, 6, 7]]
MESH = Mesh(np.array(jax.devices()), ("d",))
TWO = Mesh(np.array(jax.devices()).reshape(4, 2), ("a", "b"))
SPLIT, BOTH = P("d"), P(("a", "b"))


def step(x: Any, gamma: Any, beta: Any, mask: Any, t: Any, **options: Any) -> Any:
    """y, moments, and the gradients of x, gamma and beta."""

    def loss(x: Any, gamma: Any, beta: Any) -> Any:
        y, m = xj.batch_norm(x, gamma, beta, mask=mask, **options)
        return (y * t).sum(), (y, m)

    return jax.grad(loss, (0, 1, 2), has_aux=True)(x, gamma, beta)


def second(x: Any, t: Any, **options: Any) -> Any:
    """A Hessian times t."""
    return jax.jvp(jax.grad(lambda x: (xj.batch_norm(x, **options)[0] ** 3 * t).sum()), (x,), (t,))[1]


def shards(f: Any, into: Any, out: Any, mesh: Any = MESH) -> Any:
    """f on each device's part."""
    return jax.jit(shard_map(f, mesh=mesh, in_specs=into, out_specs=out))


def named(x: Any, mask: Any, t: Any) -> Any:
    """A step on a part of the batch."""
    return step(x, GAMMA, BETA, mask, t, axis_name="d")


def in_group(x: Any, mask: Any) -> Any:
    """y, of a part of one of two batches."""
    return xj.batch_norm(x, GAMMA, BETA, mask=mask, axis_name="d", axis_index_groups=GROUPS)[0]


WHOLE, SECOND = jax.jit(step), jax.jit(second)
BY_SHARDS = shards(
    lambda *a: step(*a, axis_name="d"),
    (SPLIT, P(), P(), SPLIT, SPLIT),
    ((SPLIT, P(), P()), (SPLIT, P())),
)
FORWARD = shards(lambda x: xj.batch_norm(x, axis_name="d"), SPLIT, (SPLIT, P()))
BY_TWO = shards(
    lambda x, m: xj.batch_norm(x, GAMMA, BETA, mask=m, axis_name=("a", "b"))[0], (BOTH, BOTH), BOTH, TWO
)
SECONDS = shards(lambda *a: second(*a, axis_name="d"), (SPLIT, SPLIT), SPLIT)
ALONE = shards(second, (SPLIT, SPLIT), SPLIT)
PMAP, VMAP = jax.pmap(named, axis_name="d"), jax.jit(jax.vmap(named, axis_name="d"))
IN_GROUPS = jax.pmap(in_group, axis_name="d")
PLAIN = jax.jit(lambda x, mask: xj.batch_norm(x, GAMMA, BETA, mask=mask)[0])


def parts(a: Any) -> Any:
    """One part a device, along a new first dimension."""
    return a.reshape(8, 2, *a.shape[1:])


def whole(a: Any) -> Any:
    """The reverse."""
    return np.asarray(a).reshape(16, *a.shape[2:])


def errors(offset: float) -> dict[str, float]:
    """Of each way, for x around this offset."""
    x = numbers(T.shape, 0, offset)
    x[:4] += 2

    def shown(gradients: Any, aux: Any) -> Any:
        y, m = aux
        mean = np.asarray(m.high, np.float64) + np.asarray(m.low, np.float64) - offset
        return gradients, y, m.count, mean, m.m2

    def by_parts(result: Any) -> Any:
        (dx, dgamma, dbeta), (y, m) = result
        assert all((np.asarray(v) == np.asarray(v)[0]).all() for v in m)  # all devices have the same bits
        first = jax.tree.map(lambda v: np.asarray(v)[0], m)
        return shown((whole(dx), np.asarray(dgamma).sum(0), np.asarray(dbeta).sum(0)), (whole(y), first))

    one = shown(*WHOLE(x, GAMMA, BETA, MASK, T))
    halves = np.concatenate([PLAIN(x[i : i + 8], MASK[i : i + 8]) for i in (0, 8)])
    each = np.concatenate([SECOND(x[i : i + 2], T[i : i + 2]) for i in range(0, 16, 2)])
    return {
        "shard_map": relative(shown(*SHARDED(x, GAMMA, BETA, MASK, T)), one),
        "pmap": relative(by_parts(PMAP(parts(x), parts(MASK), parts(T))), one),
        "vmap": relative(by_parts(VMAP(parts(x), parts(MASK), parts(T))), one),
        "two names": relative(BY_TWO(x, MASK), one[1]),
        "groups": relative(whole(IN_GROUPS(parts(x), parts(MASK))), halves),
        "spmd": relative(shown(*SPMD(*placed_for_jit(x))), one),
        "second order": relative(SECONDS(x, T), SECOND(x, T)),
        "each device alone": relative(ALONE(x, T), each),
    }


def placed_for_jit(x: Any) -> list[Any]:
    """The arguments of a step, sharded: jit has no name for the devices."""
    split, same = NamedSharding(MESH, SPLIT), NamedSharding(MESH, P())
    return [jax.device_put(a, split if a.ndim > 1 else same) for a in (x, GAMMA, BETA, MASK, T)]


def collectives(compiled: Any) -> list[str]:
    """Those of a compiled program, in its order."""
    return re.findall(r"= .*? (all-\w+|reduce-scatter|collective-\w+)\(", compiled.as_text())


# Compiled once: they are run, and their text is looked at.
SHARDED = BY_SHARDS.lower(T, GAMMA, BETA, MASK, T).compile()
SPMD = WHOLE.lower(*placed_for_jit(T)).compile()

nothing = FORWARD(np.zeros((16, 0), np.float32))
found = {
    "around 0": errors(0),
    "around 1e4": errors(1e4),
    "no channels": [list(nothing[0].shape), float(nothing[1].count)],
    "collectives": {
        "of a forward": collectives(FORWARD.lower(T).compile()),
        "of shard_map": collectives(SHARDED),
        "of spmd": collectives(SPMD),
    },
}
print(json.dumps(found))
