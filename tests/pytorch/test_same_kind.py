"""Plans that are found again by torch.compile's guard: a call that is odd in some way is seen after good calls too."""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import xhat.torch as xt
from xhat.errors import XhatError
from xhat.torch.internals import SameKind


class Named(Tensor):
    """A subclass."""


class Passing(TorchDispatchMode):
    """A mode that changes nothing."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """As without it."""
        return func(*args, **(kwargs or {}))


OTHERS: dict[str, Callable[[Tensor], Tensor]] = {
    "shape": lambda t: t[:1],
    "strides": lambda t: t.t(),
    "dtype": lambda t: t.double(),
    "class": lambda t: t.as_subclass(Named),
    "gradient": lambda t: t.clone().requires_grad_(),
    "sign in memory": lambda t: torch._neg_view(t),
    "sparse": lambda t: t.to_sparse(),
    "meta": lambda t: t.to("meta"),
}


@pytest.mark.parametrize("other", OTHERS.values(), ids=OTHERS)
def test_a_tensor_of_another_kind_is_another(other: Callable[[Tensor], Tensor]) -> None:
    t, found = torch.randn(3, 3), SameKind()
    assert found.get(t, t) is None
    found.put("value", t, t)
    assert found.get(t, t) == found.get(t, torch.ones(3, 3)) == "value"
    assert found.get(t, other(t)) is None


def test_a_transform_and_a_mode_are_another_kind() -> None:
    t, found, seen = torch.randn(3, 3), SameKind(), []
    found.put("value", t, t)

    def look(x: Tensor) -> Tensor:
        seen.append(found.get(t, x))
        return x.sum()

    torch.func.grad(look)(t)
    torch.func.vmap(look)(t.expand(2, 3, 3))
    with Passing():
        look(t)
    with torch.inference_mode():
        look(torch.randn(3, 3))
    assert seen == [None] * 4


def test_no_tensor_is_kept_alive_and_the_number_of_values_is_bounded() -> None:
    tensors, found = [torch.randn(2) for _ in range(9)], SameKind(limit=4)
    for t in tensors:
        found.put("value", t, t)
    assert sum(found.get(t, t) is not None for t in tensors) <= 4
    kept = [weakref.ref(t) for t in tensors]
    del tensors, t
    gc.collect()
    assert [r() for r in kept] == [None] * 9


def outcome(layer: nn.Module, x: Any) -> str:
    """What a training step gives or raises, and the state that it leaves, with all digits."""
    try:
        y = layer(x)
        result: Any = y.detach().double().tolist(), y.dtype, y.stride()
    except XhatError as error:
        result = error
    return repr((result, [b.detach().double().tolist() for b in layer.buffers()]))


def test_an_option_that_changes_in_place_is_read_in_every_call() -> None:
    x, eps, slope = torch.randn(5, 7), torch.tensor(1e-5), torch.tensor(0.1)
    for name, option, value in (("eps", eps, eps), ("activation", slope, ("leaky_relu", slope))):
        layer = xt.BatchNorm1d(7)
        setattr(layer, name, value)
        before = layer(x), layer(x)
        option.fill_(9.0)
        assert torch.equal(*before) and not torch.allclose(layer(x), before[0])


ODD: dict[str, Callable[[xt.BatchNorm1d, Tensor], Any]] = {
    "eps 0": lambda layer, x: setattr(layer, "eps", 0),
    "eps as an int": lambda layer, x: setattr(layer, "eps", 1),
    "correction as a float": lambda layer, x: setattr(layer, "correction", 0.0),
    "correction 1": lambda layer, x: setattr(layer, "correction", 1),
    "an activation": lambda layer, x: setattr(layer, "activation", "relu"),
    "momentum of NaN": lambda layer, x: setattr(layer, "momentum", float("nan")),
    "a shorter weight": lambda layer, x: setattr(layer.weight, "data", layer.weight.data[:2].clone()),
    "a wider weight": lambda layer, x: setattr(layer.weight, "data", layer.weight.data.double()),
    "a strided bias": lambda layer, x: setattr(layer.bias, "data", torch.ones(14)[::2]),
    "shorter statistics": lambda layer, x: setattr(layer.running_mean, "data", torch.zeros(2)),
    "strided statistics": lambda layer, x: setattr(layer.running_var, "data", torch.ones(14)[::2]),
    "statistics of integers": lambda layer, x: setattr(layer.running_mean, "data", torch.zeros(7).int()),
    "statistics that learn": lambda layer, x: layer.running_mean.requires_grad_(),
    "a counter of floats": lambda layer, x: setattr(layer, "num_batches_tracked", torch.tensor(0.0)),
    "x of another dtype": lambda layer, x: setattr(x, "data", x.data.half()),
    "x of another shape": lambda layer, x: setattr(x, "data", x.data[:, :3]),
    "one value": lambda layer, x: setattr(x, "data", x.data[:1]),
    "no values": lambda layer, x: setattr(x, "data", x.data[:0]),
    "evaluation": lambda layer, x: layer.eval(),
}


@pytest.mark.parametrize("change", ODD.values(), ids=ODD)
def test_an_odd_call_has_the_same_outcome_after_good_calls(change: Callable[..., Any]) -> None:
    found = []
    for good_calls in (0, 3):
        torch.manual_seed(0)
        layer, x = xt.BatchNorm1d(7), torch.randn(5, 7)
        state = {name: value.clone() for name, value in layer.state_dict().items()}
        for _ in range(good_calls):
            layer(x)
        layer.load_state_dict(state)
        change(layer, x)
        found.append(outcome(layer, x))
    assert found[0] == found[1]
