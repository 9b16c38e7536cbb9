"""Batch normalization that can be trusted. The public names, and no code but that of `__version__`.

The functions here take NumPy arrays. `xhat.numpy` has a layer for them; `xhat.torch`, `xhat.jax`, `xhat.flax`,
`xhat.equinox` and `xhat.keras` are for these frameworks; `xhat.lens` has the checker, the prover and the report.
"""

from typing import Any as _Any

from xhat import installation as installation  # first, so that what is missing is named in one sentence
from xhat.equations import Paths as Paths
from xhat.ops import Context as Context
from xhat.ops import Gradients as Gradients
from xhat.ops import Moments as Moments
from xhat.ops import batch_norm as batch_norm
from xhat.ops import batch_norm_backward as batch_norm_backward
from xhat.ops import config as config
from xhat.ops import gradient_paths as gradient_paths
from xhat.ops import moments as moments
from xhat.ops import normalize as normalize
from xhat.states import ConvertedState as ConvertedState
from xhat.states import convert_state as convert_state

__all__ = [
    "Context",
    "ConvertedState",
    "Gradients",
    "Moments",
    "Paths",
    "batch_norm",
    "batch_norm_backward",
    "config",
    "convert_state",
    "gradient_paths",
    "moments",
    "normalize",
]


def __getattr__(name: str) -> _Any:
    """`__version__`, looked up when it is read: importlib.metadata takes longer to import than xhat."""
    if name == "__version__":
        return config()["version"]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
