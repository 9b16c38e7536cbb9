"""Moments of data that is never in memory at once: each shard gives its own, and merging loses nothing."""

import numpy as np

import xhat

rng = np.random.default_rng(0)
data = rng.normal(1e4, 0.1, size=(100_000, 4)).astype(np.float32)  # far from 0: many ways to lose digits
shards = np.split(data, [10, 70_000, 70_000])  # as uneven as it gets: one of them is empty

merged = xhat.moments(shards[0])
for shard in shards[1:]:
    merged = merged.merge(xhat.moments(shard))

exact = data.astype(np.float64)
print(f"{merged.count:g} rows in shards of {[len(shard) for shard in shards]}")
print("variance, merged       ", merged.var())
print("variance, float64      ", exact.var(axis=0))
print("E[x^2] - E[x]^2 instead", np.mean(data**2, axis=0) - np.mean(data, axis=0) ** 2)
np.testing.assert_allclose(merged.mean, exact.mean(axis=0), rtol=1e-14)
np.testing.assert_allclose(merged.var(), exact.var(axis=0), rtol=1e-9)

# Evaluation with the moments of all shards.
y = xhat.normalize(shards[0], merged.mean, merged.var())
print("first row, normalized  ", y[0])
