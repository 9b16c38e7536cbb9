"""A fault on one rank is an error on all ranks that names it, and the group can be used afterwards. On three ranks."""

import copy
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from claims import LIMIT, Claims, close, on_all_ranks, refused
from definition import ACTIVATIONS, option_sets, problem
from equality import CHANNELS, ROWS, check, numbers, splits
from torch import Tensor, nn

import xhat.torch as xt
from xhat.errors import ArgumentError
from xhat.torch.errors import ExchangeError, TensorShapeError
from xhat.torch.internals import timeout_of
from xhat.torch.sync import frames

claim = Claims()


def model(channels: int = 5) -> nn.Sequential:
    return nn.Sequential(xt.SyncBatchNorm(channels), xt.SyncBatchNorm(channels))


def disagreed(run: Callable[[], Any], *expected: str, layer: nn.Module) -> None:
    """Every rank gets an error whose message has all these parts, and no state has changed."""
    before = copy.deepcopy(layer.state_dict())
    message = refused(ExchangeError, run)
    assert all(part in message for part in expected), message
    for name, value in layer.state_dict().items():
        assert torch.equal(value, before[name]), name


def goes_on() -> None:
    """The group still works: the next exchange gives the right values."""
    layer, x = xt.SyncBatchNorm(3).double(), torch.arange(12.0).reshape(4, 3).double()
    y = layer(x.clone().requires_grad_())
    y.sum().backward()
    close(y, xt.BatchNorm1d(3).double()(x.repeat(dist.get_world_size(), 1))[:4], 1e-12, "goes on")


@claim
def without_a_fault_an_odd_number_of_ranks_gives_what_the_whole_batch_gives() -> None:
    chosen = list(option_sets(training=True))
    for k, (name, rows) in enumerate(splits()):
        for o in chosen[k::41]:
            p = problem(numbers(ROWS, CHANNELS, 4), o["affine"], o["residual"], o["mask"])
            check(p, rows, (name, o), correction=o["correction"], activation=ACTIVATIONS[o["activation"]])


@claim
def the_number_of_channels() -> None:
    """Frames of different sizes would abort the process in gloo."""
    for small in (0, 1):  # the rank with fewer channels
        channels = 5 if dist.get_rank() == small else 300
        net = model(channels)
        disagreed(
            lambda net=net, channels=channels: net(torch.randn(4, channels)),
            "number of channels of statistics of layer '0'",
            f"5 on rank {small}",
            f"300 on ranks {', '.join(str(r) for r in range(3) if r != small)}",
            layer=net,
        )
        goes_on()


@claim
def the_dtype() -> None:
    net = model()
    x = torch.randn(4, 5, dtype=torch.bfloat16 if dist.get_rank() == 2 else torch.float32)
    expected = (
        "the dtype of statistics of layer '0'",
        "torch.float32 on ranks 0, 1",
        "torch.bfloat16 on rank 2",
    )
    disagreed(lambda: net(x), *expected, layer=net)
    goes_on()


@claim
def the_layer() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = xt.SyncBatchNorm(5), xt.SyncBatchNorm(5)

        def forward(self, x: Tensor) -> Tensor:
            return self.left(x) if dist.get_rank() else self.right(x)

    net = Branches()
    expected = "disagree on the layer", "'right' on rank 0", "'left' on ranks 1, 2"
    disagreed(lambda: net(torch.randn(4, 5)), *expected, layer=net)
    goes_on()


@claim
def the_layer_after_many_steps() -> None:
    """When all frames have reached their sizes."""
    net = model()
    for _ in range(3):
        net(torch.randn(4, 5, requires_grad=True)).sum().backward()
    expected = "disagree on the layer", "'0' on ranks 1, 2", "'1' on rank 0"
    disagreed(lambda: net[1 if dist.get_rank() == 0 else 0](torch.randn(4, 5)), *expected, layer=net)
    net(torch.randn(4, 5, requires_grad=True)).sum().backward()
    goes_on()


@claim
def the_pass() -> None:
    """One rank's backward meets the others' forward."""
    net = model()
    x = torch.randn(4, 5, requires_grad=True)
    loss = net(x).sum()
    expected = "disagree on the exchange", "'gradient sums' on rank 0", "'statistics' on ranks 1, 2"
    disagreed(loss.backward if dist.get_rank() == 0 else lambda: net[1](x), *expected, layer=net)
    goes_on()


@claim
def the_need_of_a_gradient() -> None:
    """Otherwise some ranks would wait for others in the backward pass."""
    net = model()
    x = torch.randn(4, 5, requires_grad=dist.get_rank() != 1)
    expected = (
        "need of a gradient for the input",
        "statistics of layer '0'",
        "True on ranks 0, 2",
        "False on rank 1",
    )
    disagreed(lambda: net(x), *expected, layer=net)
    goes_on()


@claim
def the_options() -> None:
    """Otherwise each rank would compute the gradient of another function."""
    for name, mine, others, said in (
        ("eps", dict(eps=0.5), {}, ("0.5", "1e-05")),
        ("correction", dict(correction=1), {}, ("1", "0")),
        ("activation", dict(activation="silu"), {}, ("'silu'", "None")),
        ("slope", dict(activation=("leaky_relu", 0.25)), dict(activation="relu"), ("0.25", "0.0")),
    ):
        net = nn.Sequential(xt.SyncBatchNorm(5, **(mine if dist.get_rank() == 0 else others)))
        expected = (
            f"disagree on the {name} of statistics of layer '0'",
            f"{said[0]} on rank 0; {said[1]} on ranks 1, 2",
        )
        disagreed(lambda net=net: net(torch.randn(4, 5)), *expected, layer=net)
        goes_on()


@claim
def a_bad_input_on_one_rank() -> None:
    """This rank raises its own error, and the others get an ExchangeError at once."""
    for kind, message, bad in (
        (TensorShapeError, "residual has shape (3, 5), expected (4, 5)", dict(residual=torch.randn(3, 5))),
        (ArgumentError, "mask has a negative", dict(mask=-torch.ones(4, 1))),
        (TensorShapeError, "mask has shape", dict(mask=torch.ones(3, 1))),
    ):
        net = xt.SyncBatchNorm(5)
        if dist.get_rank() == 1:
            assert message in refused(kind, lambda net=net, bad=bad: net(torch.randn(4, 5), **bad))
        else:
            told = "rank 1 stopped before the exchange of statistics, by an error of its own"
            disagreed(lambda net=net: net(torch.randn(4, 5)), told, layer=net)
        assert net.num_batches_tracked == 0
        goes_on()


@claim
def dimensions_on_one_rank() -> None:
    net = model()
    x = torch.randn(5) if dist.get_rank() == 0 else torch.randn(4, 5)
    message = refused(ValueError if dist.get_rank() == 0 else ExchangeError, lambda: net(x))
    told = "rank 0 stopped before the exchange of statistics of layer '0', by an error of its own"
    assert ("at least 2D" if dist.get_rank() == 0 else told) in message
    goes_on()


@claim
def a_call_that_one_rank_makes_wrongly() -> None:
    """It fails before anything is exchanged. Without a frame from it the others would wait until the timeout."""

    def activated(net: nn.Sequential, x: Tensor) -> Any:
        return net[0](x, activation="cubic")

    def set_later(net: nn.Sequential, x: Tensor) -> Any:
        net[0].eps = -1.0
        return net(x)

    def transformed(net: nn.Sequential, x: Tensor) -> Any:
        return torch.func.grad(lambda t: net(t).sum())(x)

    for call, said in (
        (activated, "activation is 'cubic'"),
        (set_later, "eps is -1.0"),
        (transformed, "torch.func"),
    ):
        net, x = model(), torch.randn(4, 5)
        if dist.get_rank() == 0:
            assert said in refused(ArgumentError, lambda call=call, net=net, x=x: call(net, x)), call
        else:
            told = "rank 0 stopped before the exchange of statistics of layer '0', by an error of its own"
            disagreed(lambda net=net, x=x: net(x), told, layer=net)
        goes_on()


@claim
def messages_are_the_same_kind_of_sentence_on_every_rank() -> None:
    net = model(5 + dist.get_rank())
    messages = on_all_ranks(refused(ExchangeError, lambda: net(torch.randn(4, 5 + dist.get_rank()))))
    assert messages[0].startswith(
        "SyncBatchNorm '0': batch_norm: the ranks disagree on the number of channels"
    )
    assert set(messages) == {messages[0]}
    assert "5 on rank 0; 6 on rank 1; 7 on rank 2. No state was changed." in messages[0]


@claim
def exchanges_of_all_ranks_may_take_as_long_as_others() -> None:
    goes_on()
    group = frames._session("").group()
    assert group is not dist.group.WORLD and timeout_of(group) == timedelta(seconds=LIMIT)


@claim
def another_collective_in_between() -> None:
    """In the private group, which nobody else should use, a buffer of the size of a frame is recognized as foreign."""
    layer, x = xt.SyncBatchNorm(5, process_group=dist.new_group()), torch.randn(4, 5)
    for _ in range(3):
        layer(x)
    group = frames._session(layer._group).group()
    if dist.get_rank() == 0:
        frame = torch.zeros(16 + 13, dtype=torch.float64)
        frames._all_gather(torch.empty(3 * len(frame), dtype=torch.float64), frame, group=group)
    else:
        disagreed(lambda: layer(x), "another collective came between, on rank 0", layer=layer)


if __name__ == "__main__":
    claim.run()
