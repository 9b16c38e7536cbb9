"""The plan of a call: what follows from shapes, strides, dtypes and options alone, found once for each combination.

The gates of NumPy (`ops`) and of PyTorch (`torch.functional`) look their plans up here, in one cache. A plan holds
for every call whose arrays differ in their addresses and elements only, so no array and no address may live here.
An error is never cached: a call that is refused is checked again.
"""

from collections.abc import Callable
from functools import lru_cache
from math import inf
from typing import Any, NamedTuple

from xhat import layout
from xhat.checks import CONSTANTS, Kind, activation_of, check_correction, check_eps
from xhat.installation import kernels
from xhat.layout import Strides, View

__all__ = [
    "ACTIVATIONS",
    "DTYPES",
    "ITEM_SIZES",
    "Options",
    "Plan",
    "check_options",
    "constant",
    "find_plan",
    "kernels",
    "make_plan",
    "plan_of",
    "saved_for_backward",
]

# The kernels' codes, and the bytes of an element by the code of its dtype.
DTYPES = kernels.DTYPES
ITEM_SIZES = {code: {"float64": 8, "float32": 4}.get(name, 2) for name, code in DTYPES.items()}
ACTIVATIONS = {None if name == "none" else name: code for name, code in kernels.ACTIVATIONS.items()}


class Options(NamedTuple):
    """eps, the correction c of m - c, and the activation (None, "leaky_relu" or "silu") with its slope below 0."""

    eps: float
    correction: int
    activation: str | None
    slope: float

    @property
    def arguments(self) -> tuple[float, int, Any]:
        """eps, correction and activation as a caller gives them."""
        leaky = self.activation == "leaky_relu"
        return self.eps, self.correction, ("leaky_relu", self.slope) if leaky else self.activation


def check_options(operation: str, eps: Any, correction: Any, activation: Any) -> Options:
    """The options of a call. Raises ArgumentError."""
    return Options(check_eps(eps, operation), check_correction(correction, operation),
                   *activation_of(activation, operation))  # fmt: skip


def saved_for_backward(activation: str | None, y: Any, residual: Any) -> Any:
    """What the backward pass needs besides x to find act'(pre) behind a residual: y or the residual; else None.

    Without a residual, x is enough. A leaky_relu needs only the sign of pre, and y has it; others need pre, which is
    computed again from x and the residual.
    """
    if activation is None or residual is None:
        return None
    return y if activation == "leaky_relu" else residual


def _gradient_code(activation: str | None, residual: bool) -> int:
    """The kernels' code for the arrays from which they find act'(pre): those of `saved_for_backward`."""
    if activation is None:
        return kernels.ACTIVATION_GRADS["none"]
    source = "y" if activation == "leaky_relu" else "x_and_residual"
    return kernels.ACTIVATION_GRADS[f"{activation}_from_{source if residual else 'x'}"]


class Plan(NamedTuple):
    """What the calls of one kind have in common.

    shape, dtype        of x; dtype is the kernels' code
    axes                the channel axes, ascending
    view                how the kernels walk x: (outer, channel, inner)
    memory              the strides of x as its framework counts them: NumPy in bytes, PyTorch in elements
    strides             the strides of x on the view, in elements; None where x has to be copied first
    m                   elements per channel; infinite where mean and var are given
    options             eps, correction, activation, slope
    activation          the kernels' code of the activation, and
    activation_grad     of how the backward pass finds where the activation stood
    residual            whether a residual is added before the activation
    activated_residual  whether an activation follows it: dresidual = dy act'(pre) is then an array of its own, not dy
    statistics_shape    (4, channels...): of mean, var, gamma and beta
    parameter_dtypes    those of gamma and beta; None for one that was not given
    """

    shape: tuple[int, ...]
    dtype: int
    axes: tuple[int, ...]
    view: View
    memory: tuple[int, ...]
    strides: Strides | None
    m: float
    options: Options
    activation: int
    activation_grad: int
    residual: bool
    activated_residual: bool
    statistics_shape: tuple[int, ...]
    parameter_dtypes: tuple[Any, Any]

    def linear(self) -> "Plan":
        """The plan of the same call without the activation."""
        linear = self.options._replace(activation=None, slope=0.0)
        none, no_gradient = ACTIVATIONS[None], _gradient_code(None, self.residual)
        return self._replace(
            options=linear, activation=none, activation_grad=no_gradient, activated_residual=False
        )


def make_plan(
    check: Callable[..., tuple[int, ...]], operation: str, shape: tuple[int, ...], dtype: Any, memory: tuple[int, ...],
    unit: int, kinds: tuple[Kind, Kind, Kind, Kind, Kind], masked: bool, axis: Any, eps: Any, correction: Any,
    activation: Any,
) -> Plan:  # fmt: skip
    """The plan of calls of one kind.

    check: the gate's own checks, check(operation, shape, dtype, axis, masked, *kinds), which returns the channel axes.
    memory, unit: as in `layout.walk`. kinds: of mean, var, gamma, beta and the residual. masked: whether there is a
    mask, with which m is checked. Raises what `check` raises, and ArgumentError for an option.
    """
    options = check_options(operation, eps, correction, activation)
    axes = check(operation, shape, dtype, axis, masked, *kinds)
    mean, _, gamma, beta, residual = kinds
    view, strides = layout.walk(shape, memory, unit, axes)
    values = view.shape[0] * view.shape[2]
    return Plan(
        shape=shape,
        dtype=DTYPES[str(dtype).rpartition(".")[2]],  # "float32", "torch.float32"
        axes=axes,
        view=view,
        memory=memory,
        strides=strides,
        m=inf if mean is not None else float(values),
        options=options,
        activation=ACTIVATIONS[options.activation],
        activation_grad=_gradient_code(options.activation, residual is not None),
        residual=residual is not None,
        activated_residual=residual is not None and options.activation is not None,
        statistics_shape=(4, *[shape[a] for a in axes]),
        parameter_dtypes=(gamma and gamma[1], beta and beta[1]),
    )


def constant(*options: Any) -> bool:
    """Whether no option can change its value while it is the same object, as a tensor can."""
    for option in options:
        for part in option if type(option) is tuple else (option,):
            if type(part) not in CONSTANTS:
                return False
    return True


def find_plan(*key: Any) -> Plan:
    """`make_plan`, cached where the options are a key: constants, and no True in a tuple, which is equal to 1 there."""
    activation = key[-1]
    if type(activation) is not tuple or _KEYS_IN_TUPLES.issuperset(map(type, activation)):
        try:
            return plan_of(*key)
        except Exception:  # an option that is no key; or an error of ours, which the next line raises again
            pass
    return make_plan(*key)


_KEYS_IN_TUPLES = frozenset(CONSTANTS) - {bool, type(None)}


@lru_cache(maxsize=4096, typed=True)  # typed: 1 is a correction, 1.0 is none
def plan_of(*key: Any) -> Plan:
    """`make_plan`, cached. Raises TypeError where an option may change its value, such as a tensor: it is no key.

    `find_plan` then calls `make_plan`, as it does where an option has no hash. `typed` does not reach into a tuple, so
    a tuple of axes has to hold ints.
    """
    if not constant(*key[-3:]):
        raise TypeError("not a constant")
    return make_plan(*key)
