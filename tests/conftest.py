"""What the tests are run over: shapes, layouts, dtypes, options, and the instruction sets of this machine.

All sizes of a shape are distinct, so that two axes taken for one another change the result. What a strided
array skips in its buffer is NaN: reading there poisons a sum, writing there is seen.
"""

import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

# One OpenMP thread, here and in child processes, set before any library reads it. Results do not depend on the number
# of threads, while idle threads of several pools spin on cores that the tests need. Tests of threads set the number.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Keras reads its backend when it is imported; a test that needs another runs in a process of its own.
os.environ.setdefault("KERAS_BACKEND", "jax")

import hypothesis
import ml_dtypes
import numpy as np
import pytest

TESTS = Path(__file__).parent

# Without PyTorch its tests are left out. Their folder must not be called `torch`, which would be imported in its place.
collect_ignore = [] if find_spec("torch") else ["doctor", "pytorch"]
if not (find_spec("keras") and find_spec(os.environ["KERAS_BACKEND"])):
    collect_ignore.append("keras3")

Array = np.ndarray[Any, np.dtype[Any]]

DTYPES: dict[str, np.dtype[Any]] = {
    "float64": np.dtype(np.float64),
    "float32": np.dtype(np.float32),
    "float16": np.dtype(np.float16),
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}
# The distance from 1 to the next number.
EPSILON = {name: float(ml_dtypes.finfo(dtype).eps) for name, dtype in DTYPES.items()}

hypothesis.settings.register_profile("suite", deadline=None, derandomize=True, max_examples=150)
hypothesis.settings.register_profile("explore", deadline=None, max_examples=20_000)
hypothesis.settings.load_profile("suite")


class Layout(NamedTuple):
    """How an array lies in memory: a buffer, a view of it, and the channel axis of the view."""

    buffer: tuple[int, ...]
    view: Callable[[Array], Array]
    axis: int | tuple[int, ...]
    copied: bool = False  # no (outer, channel, inner) view exists

    def empty(self, dtype: Any) -> Array:
        """An array of this layout whose gaps are NaN, and whose values are NaN yet."""
        return self.view(np.full(self.buffer, np.nan, dtype))

    def array(self, seed: str, dtype: Any = np.float64, scale: float = 1, offset: float = 0) -> Array:
        """Normal numbers in this layout; the seed is a name."""
        rng = np.random.default_rng(zlib.crc32(seed.encode()))
        a = self.empty(dtype)
        if not a.flags.writeable:  # a broadcast view: fill what it repeats
            return self.view((rng.normal(size=self.buffer) * scale + offset).astype(dtype))
        a[...] = (rng.normal(size=a.shape) * scale + offset).astype(dtype)
        return a

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the view."""
        return self.empty(np.float32).shape

    @property
    def channels(self) -> tuple[int, ...]:
        """The shape of the parameters."""
        axes = self.axis if isinstance(self.axis, tuple) else (self.axis,)
        return tuple(self.shape[a] for a in sorted(a % len(self.shape) for a in axes))

    @property
    def mask_shape(self) -> tuple[int, ...]:
        """x's shape with 1 along the channel axes."""
        axes = self.axis if isinstance(self.axis, tuple) else (self.axis,)
        return np.empty(self.shape, np.bool_).any(axis=axes, keepdims=True).shape


def whole(a: Array) -> Array:
    """The buffer itself."""
    return a


LAYOUTS: dict[str, Layout] = {
    "NCHW": Layout((3, 5, 4, 7), whole, 1),
    "NHWC": Layout((3, 4, 7, 5), lambda a: a.transpose(0, 3, 1, 2), 1),
    "NHWC, axis -1": Layout((3, 4, 7, 5), whole, -1),
    "(N, C)": Layout((37, 5), whole, 1),
    "(N, C), many": Layout((23, 67), whole, -1),
    "(N, C, L)": Layout((3, 5, 11), whole, 1),
    "(N, L, C)": Layout((3, 11, 5), whole, -1),
    "channel first": Layout((5, 3, 11), whole, 0),
    "NCDHW": Layout((2, 5, 3, 4, 7), whole, 1),
    "one channel": Layout((37, 1), whole, 1),
    "long rows": Layout((2, 3, 1031), whole, 1),
    "two channel axes": Layout((3, 2, 5, 7), whole, (1, 2)),
    "two channel axes, last": Layout((7, 2, 5), whole, (-2, -1)),
    "every other channel": Layout((3, 10, 4, 7), lambda a: a[:, ::2], 1),
    "every other sample": Layout((6, 5, 4, 7), lambda a: a[::2], 1),
    "every other value": Layout((3, 5, 22), lambda a: a[..., ::2], 1),
    "values cropped": Layout((3, 5, 11), lambda a: a[..., 2:-2], 1),
    "every other row": Layout((74, 5), lambda a: a[::2], 1),
    "every other column": Layout((37, 10), lambda a: a[:, ::2], 1),
    "transposed": Layout((5, 37), lambda a: a.T, 1),
    "Fortran": Layout((7, 4, 5, 3), lambda a: a.T, 1),
    "channels reversed": Layout((3, 5, 4, 7), lambda a: a[:, ::-1], 1),
    "values reversed": Layout((3, 5, 11), lambda a: a[..., ::-1], 1),
    "all reversed": Layout((37, 5), lambda a: a[::-1, ::-1], 1),
    "cropped": Layout((3, 5, 6, 11), lambda a: a[:, :, 1:-1, 2:-2], 1, copied=True),
    "NHWC cropped": Layout((3, 6, 9, 5), lambda a: a[:, 1:-1, 1:-1].transpose(0, 3, 1, 2), 1, copied=True),
    "channels apart": Layout((3, 2, 7, 5), whole, (1, 3), copied=True),
    "broadcast": Layout((3, 5, 1, 7), lambda a: np.broadcast_to(a, (3, 5, 4, 7)), 1, copied=True),
}

# What a call may ask for, as (mask, residual, activation).
MASKS = ("none", "bool", "weights")
ACTIVATIONS: dict[str, Any] = {
    "none": None,
    "relu": "relu",
    "leaky_relu": ("leaky_relu", 0.1),
    "silu": "silu",
}


def mask_of(kind: str, layout: Layout, seed: str) -> Array | None:
    """No mask, a bool one, or real weights some of which are 0."""
    if kind == "none":
        return None
    rng = np.random.default_rng(zlib.crc32(seed.encode()))
    keep: Array = rng.random(layout.mask_shape) < 0.7
    keep.flat[:2] = True, False
    return keep if kind == "bool" else keep * rng.uniform(0.2, 3, size=keep.shape)


def away_from_the_kink(dy: Array, pre: Array, margin: float) -> Array:
    """dy with zeros where a ReLU's slope hangs on the rounding of its argument; in place where it can be."""
    dy = dy if dy.flags.writeable else dy.copy()
    dy[np.abs(pre) < margin] = 0
    return dy


def in_a_process(code: str, *arguments: str, timeout: float = 120, **environment: str) -> str:
    """What Python prints for this code in a process of its own; fails if that ends badly or hangs.

    It has the threads of this process, one, unless OMP_NUM_THREADS is among the variables. XHAT_PATIENCE multiplies the
    limit, for a machine that is emulated.
    """
    clean = {k: v for k, v in os.environ.items() if k != "XHAT_ISA"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=timeout * float(os.environ.get("XHAT_PATIENCE", "1")),
        env={**clean, **environment, "PYTHONPATH": str(TESTS)},
    )
    assert done.returncode == 0, f"ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(autouse=True)
def forget_compiled() -> None:
    """Lets torch.compile begin anew: it gives up on code that it has compiled too often, such as nn.Sequential's."""
    if "torch._dynamo" in sys.modules:
        sys.modules["torch"].compiler.reset()


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> Layout:
    """Every layout."""
    return LAYOUTS[request.param]


@pytest.fixture(params=DTYPES)
def dtype(request: pytest.FixtureRequest) -> np.dtype[Any]:
    """Every dtype."""
    return DTYPES[request.param]


@pytest.fixture(params=["torch.fx", "torch.export"])
def recorder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either tool records the graph of a fold."""
    import xhat.torch  # noqa: F401  # loads the module that is patched

    if request.param == "torch.export":
        monkeypatch.setattr(sys.modules["xhat.torch.fold.graph"], "_by_fx", lambda *_: 1 / 0)
