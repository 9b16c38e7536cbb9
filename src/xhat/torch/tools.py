"""Errors for tools that take a layer of xhat's for torch's batch norm, where the result would be silently wrong.

The layers themselves must never live here.
"""

import functools
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from xhat.errors import ArgumentError
from xhat.torch.internals import read_by_mkldnn, tool_by_exact_class

__all__ = ["EpsOfALayerWithAnActivation", "check_frozen", "check_per_sample", "check_tracer", "refuse_script"]


_COMPARISONS = (np.equal, np.not_equal, np.less, np.less_equal, np.greater, np.greater_equal)


@functools.total_ordering
class EpsOfALayerWithAnActivation:
    """A number that can be read, compared and passed to another layer of xhat's, but not used in arithmetic.

    A tool that folds, freezes or converts a layer knows y = weight (x - mean) / sqrt(var + eps) + bias, without an
    activation. Every such tool reads eps, and nothing else does so in order to add it to a variance. It is not a float,
    so that functions in C refuse it as well. float(eps) is the number.
    """

    def __init__(self, value: float, layer: str, activation: Any) -> None:
        self._value, self._layer, self._activation = value, layer, activation

    @classmethod
    def read(cls, value: float, layer: str, activation: Any) -> "EpsOfALayerWithAnActivation":
        """What the property of a layer gives to its reader. Raises ArgumentError for MKL-DNN's copies of layers."""
        eps = cls(value, layer, activation)
        return eps.refuse() if read_by_mkldnn() else eps

    def __float__(self) -> float:
        return self._value

    def __eq__(self, other: object) -> bool:
        return other == self._value

    def __lt__(self, other: Any) -> bool:
        return self._value < float(other)

    def __hash__(self) -> int:
        return hash(self._value)

    def __repr__(self) -> str:
        return repr(self._value)

    def __format__(self, spec: str) -> str:
        return format(self._value, spec)

    def refuse(self, *_: Any, **__: Any) -> NoReturn:
        """Raises ArgumentError."""
        raise ArgumentError(
            f"{self._layer}: eps is added to a variance outside of the layer, which has activation="
            f"{self._activation!r}: whatever is computed from its parameters and statistics lacks the activation. Set "
            "layer.activation = None and put an activation module behind the layer first."
        )

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        """Comparisons of NumPy's are of the number, and all else is arithmetic."""
        if ufunc not in _COMPARISONS:
            self.refuse()
        numbers = (float(v) if isinstance(v, EpsOfALayerWithAnActivation) else v for v in inputs)
        return getattr(ufunc, method)(*numbers, **options)

    __dlpack__ = __dlpack_device__ = refuse  # of torch.tensor, which finds no number in this class
    __torch_function__ = classmethod(lambda cls, function, types, args=(), kwargs=None: _refuse(args, kwargs))
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = refuse
    __truediv__ = __rtruediv__ = __pow__ = __rpow__ = refuse


def _refuse(args: Any, kwargs: Any) -> NoReturn:
    """Raises ArgumentError for the eps among the arguments of a function of torch's."""
    found = (v for v in (*args, *(kwargs or {}).values()) if isinstance(v, EpsOfALayerWithAnActivation))
    next(found).refuse()


def refuse_script(layer: nn.Module) -> NoReturn:
    """What torch.jit.script calls first. Raises ArgumentError."""
    raise ArgumentError(
        f"{type(layer).__name__}: torch.jit.script compiles the source of a module, and cannot read this layer's. "
        "Use torch.jit.trace, or call xhat.torch.revert(model) first."
    )


def check_frozen(layer: nn.Module, name: str, value: Any) -> None:
    """Raises ArgumentError if this value of a statistic, which is frozen, differs from the present one."""
    old = layer._buffers.get(name)
    if old is None or value is old:
        return
    if not (isinstance(value, Tensor) and value.shape == old.shape and torch.equal(value.to(old), old)):
        raise ArgumentError(
            f"{type(layer).__name__}: {name} is assigned, and the layer's statistics are frozen. Call "
            "xhat.torch.unfreeze(layer) first, or load a state dict."
        )


def check_per_sample(*parameters: Tensor | None) -> None:
    """Raises ArgumentError if Opacus' hooks take the gradients of single samples, which a batch norm does not have."""
    if any(hasattr(p, "grad_sample") for p in parameters):
        raise ArgumentError(
            "batch_norm: the parameters have a grad_sample, for the gradients of single samples (Opacus), and a batch "
            "norm mixes the samples of a batch. Call xhat.torch.revert(model) and Opacus' ModuleValidator.fix(model), "
            "or xhat.torch.freeze(layer)."
        )


def check_tracer(layer: nn.Module, path: str) -> None:
    """Raises ArgumentError if a tool is tracing that recognizes layers by torch's exact class."""
    tool = tool_by_exact_class()
    if tool:
        raise ArgumentError(
            f"{type(layer).__name__} {path!r}: {tool} recognizes torch's batch norms by their exact class, and would "
            "leave this layer as it is without a word. Call xhat.torch.revert(model) first."
        )
