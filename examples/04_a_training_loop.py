"""A network with one batch-norm layer, trained by hand: forward, backward, and a step along every gradient."""

import numpy as np

from xhat.numpy import BatchNorm

rng = np.random.default_rng(0)
x = rng.uniform(-2, 2, size=(512, 2)).astype(np.float32)
target = x[:, :1] * x[:, 1:]  # it learns to multiply

inward = rng.normal(size=(2, 64)).astype(np.float32)
layer = BatchNorm(64, activation="silu")
outward = rng.normal(size=(64, 1)).astype(np.float32) / 8
rate = 0.03


def predict(x: np.ndarray) -> np.ndarray:
    """Evaluation, with the running moments: a single point can be asked for."""
    return layer.forward(x @ inward, training=False) @ outward


for step in range(1001):
    rows = rng.choice(len(x), 64, replace=False)
    hidden = layer.forward(x[rows] @ inward)
    error = hidden @ outward - target[rows]

    dprediction = 2 * error / len(rows)  # of the mean square
    dhidden = layer.backward(dprediction @ outward.T)
    outward -= rate * hidden.T @ dprediction
    inward -= rate * x[rows].T @ dhidden
    layer.gamma -= rate * layer.dgamma
    layer.beta -= rate * layer.dbeta
    if step % 200 == 0:
        print(f"step {step:4}   mean square {np.mean(error**2):.4f}")

point = np.array([[1.0, 1.5]], dtype=np.float32)
print(f"1 times 1.5: {predict(point)[0, 0]:.3f}, exact 1.500")
assert np.mean((predict(x) - target) ** 2) < 0.05

state = layer.state_dict()  # a plain dict of arrays
layer.load_state_dict(state)
print("state:", ", ".join(f"{name} {value.shape}" for name, value in state.items()))
