"""The data of a report page, unpacked, and batches for reports."""

import base64
import json
import re
from typing import Any

import numpy as np

HOSTILE = "</script><img src=x onerror=\"document.title='taken'\"><!-- {{script}} & ' \u2028"


def data_of(text: str) -> dict[str, Any]:
    """The JSON data of a page."""
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    data: dict[str, Any] = json.loads(found)
    return data


def unpacked(packed: list[Any]) -> Any:
    """An array of the data, one row per channel."""
    kind, width, text = packed
    array = np.frombuffer(base64.b64decode(text), f"<{kind}")
    return array if width == 1 else array.reshape(-1, width)


def batch(channels: int = 6, samples: int = 10, length: int = 5, seed: int = 0) -> dict[str, Any]:
    """x, dy, gamma and beta without findings; x is (samples, channels, length) in float32."""
    rng = np.random.default_rng(seed)
    scale, offset = np.exp(rng.normal(size=(channels, 1)) / 2), rng.normal(size=(channels, 1))
    x = rng.normal(size=(samples, channels, length)) * scale + offset
    dy = (rng.normal(size=x.shape) + 0.4 * offset + 0.3 * x) * 1e-2
    gamma, beta = rng.uniform(0.5, 1.5, channels), rng.normal(size=channels) / 2
    return {"x": x.astype(np.float32), "dy": dy.astype(np.float32), "gamma": gamma, "beta": beta}


def strange() -> dict[str, Any]:
    """Ten channels: NaN in 4, 1 constant, 2 dominated by eps, 3 far from zero, gamma 0 in 5, all removed in 6."""
    b = batch(10, 20)
    x = b["x"].astype(np.float64)
    x[:, 1] = 0.25
    x[:, 2] = 1 + 1e-4 * x[:, 2]
    x[:, 3] += 5000
    x[0, 4, 0] = np.nan
    b["gamma"][5] = 0
    b["dy"] = b["dy"].astype(np.float64)
    b["dy"][:, 6] = 3 + 2 * x[:, 6]
    return b | {"x": x}
