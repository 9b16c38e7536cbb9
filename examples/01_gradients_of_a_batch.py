"""The gradients of one batch: y, dx, dgamma and dbeta, and a look at one of them by a finite difference."""

import numpy as np

import xhat

rng = np.random.default_rng(0)
x = rng.normal(size=(8, 3, 5, 5))  # batch, channels, height, width
gamma, beta = np.array([1.0, 2.0, 0.5]), np.array([0.0, -1.0, 3.0])
dy = rng.normal(size=x.shape)  # what comes back from the layers above

y, context = xhat.batch_norm(x, gamma, beta)
dx, dgamma, dbeta, _ = xhat.batch_norm_backward(dy, context)

print("mean of y  ", y.mean(axis=(0, 2, 3)).round(6), "  it is beta")
print("std of y   ", y.std(axis=(0, 2, 3)).round(4), "  it is gamma, but for eps")
print("dgamma     ", dgamma.round(4))
print("dbeta      ", dbeta.round(4))

# The loss is sum(dy y). Move one value of x a little, and see the loss follow dx.
step = 1e-6
moved = x.copy()
moved[2, 1, 3, 4] += step
loss, loss_moved = np.sum(dy * y), np.sum(dy * xhat.batch_norm(moved, gamma, beta)[0])
print(f"dx[2,1,3,4]  {dx[2, 1, 3, 4]:.6f}, by a finite difference {(loss_moved - loss) / step:.6f}")
assert np.isclose(dx[2, 1, 3, 4], (loss_moved - loss) / step, rtol=1e-4)
