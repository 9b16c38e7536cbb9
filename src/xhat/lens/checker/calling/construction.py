"""How a layer is constructed: the quantity of each argument, and what is called before its first forward.

Where a layer keeps its arrays is in `state`; how it runs, in `modules`.
"""

import inspect
from typing import Any

from xhat.lens.checker.calling.adapter import Adapter, quantity
from xhat.lens.checker.calling.names import WIDTHS
from xhat.lens.checker.calling.state import STATE

__all__ = ["initialized", "quantities_of"]


def quantities_of(layer: type, adapter: Adapter) -> dict[str, str | None]:
    """Each parameter of the constructor with its quantity; "channels" is the number of channels."""
    found: dict[str, str | None] = {}
    for name, parameter in inspect.signature(layer).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        width = name.lower().replace("_", "") in WIDTHS and name not in adapter.names
        known = quantity(name, adapter)
        required = parameter.default is parameter.empty
        if width or (required and not found and known not in ("gamma", "beta")):
            found[name] = "channels"
        elif required or known not in STATE:  # bias=True is no array
            found[name] = known
    return found


class _Descent:
    """An optimizer for layers that update their parameters themselves: each moves by its gradient."""

    def update(self, w: Any, grad_wrt_w: Any) -> Any:
        return w - grad_wrt_w


def initialized(made: Any, channels: int) -> Any:
    """The layer after `set_input_shape` and `initialize(optimizer)`, if it has them."""
    if callable(getattr(made, "set_input_shape", None)):
        made.set_input_shape((channels,))
    if callable(getattr(made, "initialize", None)):
        made.initialize(_Descent())
    return made
