"""xhat without its compiled kernels, which a machine with a GPU need not have: the Triton kernels use none of them."""

import sys
from types import ModuleType
from typing import Any

__all__ = ["stand_in_if_missing"]

DTYPES = {"float64": 0, "float32": 1, "float16": 2, "bfloat16": 3}
ACTIVATIONS = {"none": 0, "leaky_relu": 1, "silu": 2}
ACTIVATION_GRADS = {"none": 0, "leaky_relu_from_x": 1, "leaky_relu_from_y": 2, "silu_from_x": 3,
                    "silu_from_x_and_residual": 4}  # fmt: skip


def stand_in_if_missing() -> bool:
    """Puts the codes of dtypes and activations in place of compiled kernels that can't be loaded; whether it did."""
    try:
        import xhat  # noqa: F401
    except ImportError as error:
        if "compiled kernels" not in str(error):
            raise
    else:
        return False

    def missing(*_: Any, **__: Any) -> None:
        raise RuntimeError(
            "benchmarks.gpu: the compiled kernels are missing, and a tensor of the CPU needs them."
        )

    found: Any = ModuleType("xhat._kernels")
    found.DTYPES, found.ACTIVATIONS, found.ACTIVATION_GRADS = DTYPES, ACTIVATIONS, ACTIVATION_GRADS
    for name in ("forward", "backward", "track", "isa", "isa_available", "use_isa", "threads"):
        setattr(found, name, missing)
    for name in [name for name in sys.modules if name == "xhat" or name.startswith("xhat.")]:
        del sys.modules[name]
    sys.modules["xhat._kernels"] = found
    return True
