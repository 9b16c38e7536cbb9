"""`diagnose` touches nothing: what a model and a process hold is the same, bit for bit, whatever happens meanwhile."""

import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from small import batches, bits, far_off, fitted, loss, net, process, snapshot, squared, taught
from torch import Tensor, nn

import xhat.torch as xt
from xhat.errors import ArgumentError


class Restless(nn.Module):
    """A model that changes what it can reach: attributes, buffers, hooks, modes, flags, random states, gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()
        self.steps = 0
        self.seen: list[int] = []
        self.register_buffer("total", torch.zeros(2))
        self.total: Tensor

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        self.seen.append(len(x))
        self.total += 1
        self.net[1].running_mean = self.net[1].running_mean + 1
        self.net.register_forward_hook(lambda *_: None)
        self.net[5].momentum = 0.7
        self.net[0].weight.requires_grad_(False)
        self.net[0].weight.grad = None
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.set_autocast_dtype("cpu", torch.float16)
        torch.set_default_dtype(torch.float64)
        random.random()
        np.random.rand()
        x.mul_(1.5)
        y: Tensor = self.net(x + 0 * torch.rand(1).float())
        self.net.train(not self.net.training)
        return y


def with_gradients(model: nn.Module) -> nn.Module:
    for k, p in enumerate(model.parameters()):
        p.grad = torch.full_like(p, float(k))
    model.register_forward_pre_hook(lambda *_: None)
    return model


def model_of(kind: str) -> nn.Module:
    norms: dict[str, Any] = {
        "ours": xt.BatchNorm2d,
        "skipping": lambda c: xt.BatchNorm2d(c, nonfinite="skip"),
    }
    model = Restless() if kind == "restless" else net(norm=norms.get(kind, nn.BatchNorm2d))
    return with_gradients(model)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ["torch's", "ours", "skipping", "restless"])
def test_nothing_is_touched(kind: str, training: bool) -> None:
    model, data = model_of(kind).train(training), batches()
    before, state, given = snapshot(model), process(), bits(data[0][0])
    xt.diagnose(model, data, loss, progress=False)
    assert snapshot(model) == before
    assert process() == state
    assert bits(data[0][0]) == given


def test_nothing_is_touched_where_remedies_are_tried_layer_by_layer() -> None:
    model = fitted(net(norm=xt.BatchNorm2d), batches())
    data = taught(model, batches())
    far_off(model, "5")
    before, state = snapshot(model), process()
    d = xt.diagnose(model, data, squared, progress=False)
    assert d._measured is not None and d._measured.swapped
    assert snapshot(model) == before
    assert process() == state


def interrupted(error: BaseException, at: int) -> Iterator[Any]:
    """Batches that end with an exception."""
    for k, batch in enumerate(batches()):
        if k == at:
            raise error
        torch.rand(3)
        yield batch


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("the disk is gone")])
@pytest.mark.parametrize("kind", ["torch's", "ours", "restless"])
def test_nothing_is_touched_if_the_loader_raises(kind: str, error: BaseException) -> None:
    model = model_of(kind)
    before, state = snapshot(model), process()
    with pytest.raises(type(error)):
        xt.diagnose(model, interrupted(error, at=2), loss, progress=False)
    assert snapshot(model) == before
    assert process() == state


class Failing(nn.Module):
    """Raises in the middle of a forward pass, after a number of them."""

    def __init__(self, after: int, error: BaseException) -> None:
        super().__init__()
        self.net, self.after, self.error = net(), [after], error

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.net[:3](x)
        global calls
        calls += 1
        if calls > self.after[0]:
            raise self.error
        return self.net[3:](y)  # type: ignore[no-any-return]


calls = 0


@pytest.mark.parametrize("after", [0, 1, 2, 3, 12, 13])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("no memory is left")])
def test_nothing_is_touched_if_the_model_raises(error: BaseException, after: int) -> None:
    global calls
    calls = 0
    model = with_gradients(Failing(after, error))
    before, state = snapshot(model), process()
    with suppress(KeyboardInterrupt, ArgumentError):
        xt.diagnose(model, batches(), loss, progress=False)
    assert calls > after
    assert snapshot(model) == before
    assert process() == state


def test_a_change_would_be_seen() -> None:
    changes: list[Callable[[nn.Module], Any]] = [
        lambda m: m[1].running_var.mul_(1.5),  # type: ignore[index]
        lambda m: m[1].num_batches_tracked.add_(1),  # type: ignore[index]
        lambda m: m.register_forward_hook(lambda *_: None),
        lambda m: m[0].weight.grad.add_(1),  # type: ignore[index]
        lambda m: m[0].weight.requires_grad_(False),  # type: ignore[index]
        lambda m: m[5].train(False),  # type: ignore[index]
    ]
    for change in changes:
        model = model_of("torch's")
        before = snapshot(model)
        with torch.no_grad():
            change(model)
        assert snapshot(model) != before
    state = process()
    torch.rand(1)
    assert process() != state


def test_the_diagnosis_is_the_same_each_time_with_dropout_and_whatever_the_random_state() -> None:
    model, data = net(), batches()
    first = xt.diagnose(model, data, loss, progress=False).to_dict()
    torch.manual_seed(99)
    assert xt.diagnose(model, iter(data), loss, progress=False).to_dict() == first


def test_a_loader_draws_from_the_callers_random_state() -> None:
    def drawn() -> Iterator[Any]:
        for _ in range(3):
            seen.append(float(torch.rand(1)))
            yield batches()[0]

    seen: list[float] = []
    torch.manual_seed(5)
    xt.diagnose(net(), drawn(), loss, progress=False)
    torch.manual_seed(5)
    assert seen == [float(torch.rand(1)) for _ in range(3)]


def test_buffers_that_a_graph_has_saved_can_still_be_differentiated() -> None:
    model, x = net().eval(), batches()[0][0].requires_grad_()
    y = model(x).sum()
    xt.diagnose(model, batches(), loss, progress=False)
    y.backward()
    assert x.grad is not None
