"""Sequences of different lengths, padded: with a mask, the padding changes no statistic and no gradient."""

import numpy as np

import xhat

rng = np.random.default_rng(0)
lengths = [7, 3, 5]
sequences = [rng.normal(4, 2, size=(n, 6)) for n in lengths]  # each (time, channels)

padded = np.zeros((3, 7, 6))
mask = np.zeros((3, 7, 1), dtype=bool)
for i, sequence in enumerate(sequences):
    padded[i, : len(sequence)] = sequence
    mask[i, : len(sequence)] = True

dy = rng.normal(size=padded.shape) * mask  # the loss does not look at the padding
y, context = xhat.batch_norm(padded, axis=-1, mask=mask)
dx = xhat.batch_norm_backward(dy, context).dx

# The same without padding: all 15 steps as one batch.
steps = np.concatenate(sequences)
y_steps, context_steps = xhat.batch_norm(steps)
dx_steps = xhat.batch_norm_backward(dy[mask[..., 0]], context_steps).dx

print(f"m = {context.count:g} steps, and not the {padded[..., 0].size} places of the padded array")
print("largest difference in y ", np.abs(y[mask[..., 0]] - y_steps).max())
print("largest difference in dx", np.abs(dx[mask[..., 0]] - dx_steps).max())
print("gradient of the padding ", np.abs(dx[~mask[..., 0]]).max())
np.testing.assert_allclose(y[mask[..., 0]], y_steps, atol=1e-12)
np.testing.assert_allclose(dx[mask[..., 0]], dx_steps, atol=1e-12)
assert not dx[~mask[..., 0]].any()
