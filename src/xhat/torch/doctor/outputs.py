"""Outputs of a model compared: by a few values of each tensor, so that none has to be kept."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from xhat.torch.trees import tensors

__all__ = ["distance", "sketch"]

Array = NDArray[np.float64]

SKETCH = 4096  # values of each output tensor that are compared; their distance is within 2 % of all values'


def sketch(output: Any) -> list[Array]:
    """At most `SKETCH` values of each floating-point tensor of the output, at places that depend on its size alone."""
    found = []
    for t in tensors(output):
        if t.is_complex():
            t = torch.view_as_real(t)
        if t.is_floating_point() and t.numel():
            flat = t.detach().reshape(-1)
            if len(flat) > SKETCH:
                places = np.random.default_rng(0).integers(len(flat), size=SKETCH)
                flat = flat[torch.from_numpy(places).to(flat.device)]
            found.append(
                flat.double().cpu().numpy() if flat.device.type != "mps" else flat.cpu().double().numpy()
            )
    return found


def distance(a: list[Array], reference: list[Array]) -> float:
    """sqrt of the mean over output tensors of |a - reference|^2 / |reference|^2; NaN if they do not have one shape."""
    if [len(x) for x in a] != [len(x) for x in reference] or not a:
        return float("nan")
    with np.errstate(all="ignore"):
        parts = [((x - y) ** 2).sum() / max((y**2).sum(), 1e-30) for x, y in zip(a, reference, strict=True)]
        return float(np.sqrt(np.mean(parts)))
