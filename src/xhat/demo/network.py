"""A multilayer network in NumPy with closed-form gradients: dense layers, SiLU, and batch norm from `xhat.numpy`.

Data, training and output are elsewhere.
"""

from collections import defaultdict
from itertools import pairwise
from time import perf_counter
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from xhat.numpy import BatchNorm

__all__ = ["Array", "Dense", "Layer", "Network", "Silu", "cross_entropy"]

Array = npt.NDArray[Any]


class Layer(Protocol):
    """The interface of a layer. `backward` stores the gradients of its parameters in attributes."""

    def forward(self, x: Array, *, training: bool = True) -> Array:
        """y."""

    def backward(self, dy: Array) -> Array:
        """dx."""


class Dense:
    """y = x W + b, and dW = x' dy, db = sum dy, dx = dy W'. W is initialized with variance 2 / inputs (He)."""

    def __init__(
        self, inputs: int, outputs: int, rng: np.random.Generator, *, bias: bool, dtype: Any
    ) -> None:
        self.weight = (rng.normal(size=(inputs, outputs)) * np.sqrt(2 / inputs)).astype(dtype)
        self.bias = np.zeros(outputs, dtype) if bias else None
        self.dweight: Array | None = None
        self.dbias: Array | None = None

    def forward(self, x: Array, *, training: bool = True) -> Array:
        """y = x W + b."""
        self.x = x
        y: Array = x @ self.weight
        return y if self.bias is None else y + self.bias

    def backward(self, dy: Array) -> Array:
        """dx = dy W'; stores dweight and dbias."""
        self.dweight = self.x.T @ dy
        self.dbias = None if self.bias is None else dy.sum(axis=0)
        dx: Array = dy @ self.weight.T
        return dx


class Silu:
    """y = x s(x) with s the logistic function, and dx = dy s (1 + x (1 - s))."""

    def forward(self, x: Array, *, training: bool = True) -> Array:
        """y = x s(x)."""
        self.x, self.s = x, 0.5 * (1 + np.tanh(0.5 * x))
        y: Array = self.x * self.s
        return y

    def backward(self, dy: Array) -> Array:
        """dx = dy s (1 + x (1 - s))."""
        dx: Array = dy * self.s * (1 + self.x * (1 - self.s))
        return dx


def cross_entropy(logits: Array, labels: Array) -> tuple[float, Array]:
    """loss = -mean log softmax(logits)[label], and dlogits = (softmax - onehot) / n."""
    rows = np.arange(len(labels))
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_softmax = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    dlogits = np.exp(log_softmax)
    dlogits[rows, labels] -= 1
    return float(-log_softmax[rows, labels].mean()), dlogits / len(labels)


class Network:
    """Dense, then batch norm with SiLU fused into it (or SiLU alone), for each hidden size; then Dense.

    The same seed gives the same Dense weights with and without batch normalization. A Dense layer before batch
    normalization has no bias: subtracting the mean would cancel it, and beta takes its place.
    """

    def __init__(self, sizes: list[int], *, batch_norm: bool, seed: int, dtype: Any = np.float32) -> None:
        rng = np.random.default_rng(seed)
        self.layers: list[Layer] = []
        for inputs, outputs in pairwise(sizes[:-1]):
            self.layers.append(Dense(inputs, outputs, rng, bias=not batch_norm, dtype=dtype))
            self.layers.append(BatchNorm(outputs, activation="silu", dtype=dtype) if batch_norm else Silu())
        self.layers.append(Dense(sizes[-2], sizes[-1], rng, bias=True, dtype=dtype))
        self.seconds: dict[str, float] = defaultdict(float)  # of training, by class of layer

    def forward(self, x: Array, *, training: bool = True) -> Array:
        """The logits: every layer in turn."""
        for layer in self.layers:
            start = perf_counter()
            x = layer.forward(x, training=training)
            if training:
                self.seconds[type(layer).__name__] += perf_counter() - start
        return x

    def backward(self, dy: Array) -> Array:
        """dx of the first layer; every layer in reverse order stores the gradients of its parameters."""
        for layer in reversed(self.layers):
            start = perf_counter()
            dy = layer.backward(dy)
            self.seconds[type(layer).__name__] += perf_counter() - start
        return dy

    def parameters(self) -> list[tuple[str, Array, Array]]:
        """(name, value, gradient of the last backward) of every parameter, in the order of the layers."""
        return [
            (name, value, getattr(layer, f"d{name}"))
            for layer in self.layers
            for name in ("weight", "bias", "gamma", "beta")
            if (value := getattr(layer, name, None)) is not None
        ]
