"""The report about a PyTorch model: every batch-norm layer that one batch passes through, in this order.

PyTorch is imported on the first call only. The model is not changed: running moments and counters are restored, no
parameter gets a gradient, and all hooks are removed.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from xhat.errors import ArgumentError
from xhat.lens.reporter.data import Layer, layer_numbers
from xhat.lens.reporter.page import page, write

__all__ = ["report_model"]


class _Call(NamedTuple):
    """One call of one layer: its input, and the autograd edge of its output."""

    name: str
    module: Any
    x: Any
    edge: Any  # None: the output has no gradient, or is not gamma xhat + beta


def report_model(
    model: Any,
    batch: Any,
    loss: Callable[..., Any],
    *,
    title: str | None = None,
    path: str | Path = "report.html",
    doctor: str | Path | None = None,
) -> Path:
    """Write one page about all batch-norm layers of a PyTorch model, and return its path.

    Parameters
    ----------
    model : torch.nn.Module
        The model. Layers in training use the moments of this batch; layers in evaluation use their running moments,
        through which no gradient flows.
    batch : torch.Tensor or tuple
        The input of the model, or (input, target, ...) as from a data loader.
    loss : callable
        A function of the model's output, and of the targets if there are any, that returns a scalar tensor.
    title : str, optional
        The title of the page; by default the class of the model.
    path : str or Path, default "report.html"
        The file. It is self-contained and makes no network requests.
    doctor : str or Path, optional
        The file of ``xhat.torch.diagnose(...).to_html``, to which the page links; the link is relative to ``path``.

    Returns
    -------
    Path
        The path of the file.

    Raises
    ------
    ArgumentError
        If the model has no batch-norm layer, or if the loss is not a scalar.

    Notes
    -----
    A layer fused with an activation is shown without its backward, since the gradient at its output is not the gradient
    at y.

    Examples
    --------
    >>> import torch
    >>> import xhat.lens
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    >>> batch = torch.randn(8, 3)
    >>> xhat.lens.report_model(model, batch, torch.sum)  # doctest: +SKIP
    PosixPath('report.html')
    """
    calls = _gather(model, batch, loss)
    layers = [_numbers(call, dy) for call, dy in calls]
    link = None if doctor is None else _relative(doctor, path)
    return write(page(layers, title or type(model).__name__, model=True, doctor=link), path)


def _relative(file: str | Path, page: str | Path) -> str:
    """The address of a file as the page's link names it. It begins with a dot, so no name is taken for a protocol."""
    way = os.path.relpath(Path(file).resolve(), Path(page).resolve().parent)
    return "./" + quote(Path(way).as_posix())


def _gather(model: Any, batch: Any, loss: Callable[..., Any]) -> list[tuple[_Call, Any]]:
    import torch

    inputs, targets = (
        (batch[0], tuple(batch[1:])) if isinstance(batch, tuple | list) and batch else (batch, ())
    )
    if isinstance(inputs, torch.Tensor) and inputs.is_floating_point():
        inputs = inputs.detach().requires_grad_()  # so that frozen layers get a gradient as well
    layers = {name or "model": module for name, module in model.named_modules() if _is_batch_norm(module)}
    if not layers:
        raise ArgumentError(
            f"report_model: {type(model).__name__} has no batch-norm layer, expected one or more."
        )
    with torch.enable_grad(), _unchanged(layers.values()), _recorded(layers) as calls:
        value = _checked(_loss(model, loss, inputs, targets))
        edges = [call.edge for call in calls if call.edge is not None]
        found = iter(torch.autograd.grad(value.sum(), edges, allow_unused=True)) if edges else iter(())
    return [(call, None if call.edge is None else next(found)) for call in calls]


def _loss(model: Any, loss: Callable[..., Any], inputs: Any, targets: tuple[Any, ...]) -> Any:
    """The loss of the batch. Raises ArgumentError if the model does not take the input, or the loss the targets."""
    try:
        output = model(inputs)
    except Exception as e:
        raise ArgumentError(
            f"report_model: the model raised {_said(e)} on {_described(inputs)}, expected batch to be its input, or "
            "(input, target, ...)."
        ) from e
    try:
        return loss(output, *targets)
    except Exception as e:
        given = ", ".join(map(_described, targets)) or "no target"
        raise ArgumentError(
            f"report_model: the loss raised {_said(e)} with {given}, expected batch to be (input, target, ...) with "
            "the targets that the loss takes."
        ) from e


def _said(e: Exception) -> str:
    return f"{type(e).__name__} ({' '.join(str(e).split())[:90].rstrip('. ') or 'no message'})"


def _described(value: Any) -> str:
    if isinstance(value, dict):
        return f"a dict of {', '.join(map(str, list(value)[:6]))}"
    shape = getattr(value, "shape", None)
    return f"a {type(value).__name__}" + (f" of shape {tuple(shape)}" if shape is not None else "")


def _checked(value: Any) -> Any:
    import torch

    if isinstance(value, torch.Tensor) and value.numel() == 1 and value.requires_grad:
        return value
    got = (
        f"a tensor of shape {tuple(value.shape)}" if isinstance(value, torch.Tensor) else type(value).__name__
    )
    raise ArgumentError(
        f"report_model: the loss returned {got}, expected one number, computed from the model's output by PyTorch."
    )


def _is_batch_norm(module: Any) -> bool:
    from torch.nn.modules.batchnorm import _BatchNorm

    ours = type(module).__module__.startswith("xhat.torch") and hasattr(module, "num_features")
    return isinstance(module, _BatchNorm) or ours


@contextmanager
def _unchanged(modules: Any) -> Iterator[None]:
    """Restore every buffer (running moments, number of batches) on exit."""
    before = [
        (buffer, buffer.detach().clone()) for module in modules for buffer in module.buffers(recurse=False)
    ]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.detach().copy_(value)


@contextmanager
def _recorded(layers: dict[str, Any]) -> Iterator[list[_Call]]:
    """Record every call of these layers. The autograd edge is taken at once, before any in-place operation."""
    from torch.autograd.graph import get_gradient_edge

    calls: list[_Call] = []

    def hook(name: str, module: Any) -> Any:
        def record(module: Any, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            x, *more = (*arguments, *named.values())
            plain = output.requires_grad and _is_plain(module, more)
            again = sum(call.module is module for call in calls)
            calls.append(
                _Call(
                    f"{name} (call {again + 1})" if again else name,
                    module,
                    x.detach().clone(),
                    get_gradient_edge(output) if plain else None,
                )
            )

        return module.register_forward_hook(record, with_kwargs=True)

    handles = [hook(name, module) for name, module in layers.items()]
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def _is_plain(module: Any, more: list[Any]) -> bool:
    """Whether the output is gamma xhat + beta of a batch: no activation, renormalization, groups, residual, mask."""
    from torch.nn import Identity

    if module.training and (hasattr(module, "rmax") or hasattr(module, "groups")):
        return False

    inner = [getattr(module, name, None) for name in ("act", "drop", "activation")]
    return all(given is None for given in more) and all(
        part is None or isinstance(part, Identity) for part in inner
    )


def _numbers(call: _Call, dy: Any) -> Layer:
    module = call.module
    given = None if module.training else getattr(module, "running_mean", None)
    fixed = given is not None
    running = getattr(module, "running_mean", None), getattr(module, "running_var", None)
    counted = getattr(module, "num_batches_tracked", None)
    kept = (
        running[0] is not None and running[1] is not None and (counted is None or int(counted) > 0 or fixed)
    )
    return layer_numbers(
        _array(call.x),
        _array(dy),
        _array(module.weight),
        _array(module.bias),
        mean=_array(module.running_mean) if fixed else None,
        var=_array(module.running_var) if fixed else None,
        eps=float(module.eps),
        running=(_array(running[0]), _array(running[1])) if kept else None,
        dtype=str(call.x.dtype).removeprefix("torch."),
        name=call.name,
    )


def _array(tensor: Any) -> Any:
    import torch

    if tensor is None:
        return None
    kept = tensor.detach().cpu()
    narrow = kept.dtype in (torch.bfloat16, torch.float16)
    return (kept.float() if narrow else kept).numpy()
