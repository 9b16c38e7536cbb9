"""What exact micro-batches can't be: one sentence each, and nothing is changed."""

import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from normalized_networks import cut
from torch import Tensor, nn

import xhat.torch as xt
from xhat.errors import ArgumentError
from xhat.torch.accumulate.kept import blocks


def model(*more: nn.Module) -> nn.Sequential:
    """A block with two batch norms, and more behind it."""
    block = [nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 4), xt.BatchNorm1d(4), nn.Dropout()]
    return nn.Sequential(nn.Sequential(*block), *more, nn.Linear(4, 1))


def mean(y: Tensor, _: Any) -> Tensor:
    return y.mean()


class Own(nn.BatchNorm1d):
    """A batch norm that computes something else."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


class Depends(nn.Module):
    """Layers whose calls depend on the data."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.BatchNorm1d(4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.a(x) if len(x) == 4 else self.b(x)


class Functional(nn.Module):
    """A batch norm that is no layer."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.batch_norm(x, None, None, training=True)


class OurFunction(nn.Module):
    """The same by xhat's function."""

    def forward(self, x: Tensor) -> Tensor:
        return xt.batch_norm(x, None, None, training=True)


class InPlace(nn.Module):
    """A block that changes its input, so that it can't be repeated."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.mix, self.norm2 = nn.BatchNorm1d(4), nn.Linear(4, 4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm2(self.mix(self.norm1(x.relu_())))


class Counts(nn.Module):
    """A buffer that moves in each forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x


def lazy() -> nn.Module:
    return nn.LazyBatchNorm1d()


RAISE = {
    "an error in the loss": (model, {"loss": lambda y, b: 1 / 0}, ZeroDivisionError, "division by zero"),
    "a loss that is no scalar": (
        model, {"loss": lambda y, b: y},
        ArgumentError, r"accumulate: the loss of micro-batch 0 is of shape \(4, 1\), expected a scalar tensor. Take "
        "its mean over the samples."),
    "a loss that is no tensor": (
        model, {"loss": lambda y, b: 1.0},
        ArgumentError, "accumulate: the loss of micro-batch 0 is float, expected a scalar tensor."),
    "a loss without a gradient": (
        model, {"loss": lambda y, b: y.detach().mean()},
        ArgumentError, "accumulate: the loss of micro-batch 0 has no gradient, expected one. Compute it from"),
    "a forward of its own": (
        lambda: model(Own(4)), {},
        ArgumentError, r"accumulate: layer '1' \(.*Own\) can't share its batch with other micro-batches: its class is "
        "a subclass of torch's with a forward of its own. Put it in evaluation mode, or one of xhat.torch's layers in"),
    "torch's synchronized layer": (
        lambda: model(nn.SyncBatchNorm(4)), {},
        ArgumentError, r"layer '1' \(torch.nn.SyncBatchNorm\) can't share its batch with other micro-batches: it "),
    "a lazy layer": (
        lambda: model(lazy()), {}, ArgumentError, "accumulate: layer '1' is lazy and has met no input"),
    "calls that depend on the data": (
        lambda: model(Depends()), {},
        ArgumentError, "micro-batch 0 is at statistics of layer '1.a' and micro-batch 2 at statistics of layer '1.b'"),
    "a batch norm that is no layer": (
        lambda: model(Functional()), {},
        ArgumentError, "accumulate: the model calls torch.nn.functional.batch_norm with training=True, expected"),
    "a batch norm of ours that is no layer": (
        lambda: model(OurFunction()), {},
        ArgumentError, "accumulate: the model calls xhat.torch.batch_norm with training=True, expected"),
    "another buffer that moves": (
        lambda: model(Counts()), {},
        ArgumentError, "accumulate: buffer '1.calls' changes in each forward pass, and there is one for every "
        "micro-batch, expected that only batch norms change theirs. Put its module in evaluation mode."),
    "a block that can't be repeated": (
        lambda: model(InPlace()), {},
        ArgumentError, 'a block can\'t be computed a second time .* Pass keep="all", "host" or a folder.'),
    "groups that do not fit": (
        lambda: model(xt.GhostBatchNorm1d(4, 3)), {},
        ArgumentError, "accumulate: a micro-batch has 4 samples, expected a multiple of groups=3: else its groups "),
    "NaN that a layer refuses": (
        lambda: model(xt.BatchNorm1d(4, nonfinite="raise")), {"micro_batches": [torch.full((4, 3), torch.nan)] * 2},
        ArgumentError, 'nonfinite="raise"'),
    "no micro-batches": (
        model, {"micro_batches": []}, ArgumentError, "accumulate: there are no micro-batches, expected at least one."),
    "no tensor": (
        model, {"micro_batches": [3]}, ArgumentError, r"accumulate: micro-batch 0 \(int\) holds no tensor with a row"),
    "too few weights": (
        model, {"weights": [1]}, ArgumentError, r"accumulate: the weights are \[1.0\], expected a number "),
    "nowhere to keep": (
        model, {"keep": "/no/such/folder"}, ArgumentError, "accumulate: keep is '/no/such/folder', expected "),
    "no model": (lambda: mean, {}, ArgumentError, "accumulate: model is function, expected a torch.nn.Module."),
}  # fmt: skip


@pytest.mark.parametrize("case", RAISE)
def test_what_can_not_be_is_one_sentence_and_changes_nothing(case: str) -> None:
    """Gradients, buffers, classes, modes and random states stay as they were, and no thread is left."""
    make, options, kind, sentence = RAISE[case]
    m: Any = make()
    tensors = m.state_dict() if isinstance(m, nn.Module) else {}
    state = {name: t if nn.parameter.is_lazy(t) else t.clone() for name, t in tensors.items()}
    for p in m.parameters() if state else []:
        p.grad = None if nn.parameter.is_lazy(p) or p.dim() > 1 else torch.ones_like(p)
    held = [p.grad for p in m.parameters()] if state else []
    before = {path: (type(c), set(vars(c)), c.training) for path, c in m.named_modules()} if state else {}
    random, threads = torch.get_rng_state(), threading.active_count()
    given: Any = {"micro_batches": torch.randn(10, 3).split(4), "loss": mean, **options}
    random = torch.get_rng_state()
    with pytest.raises(kind, match=sentence):
        xt.accumulate(m, **given)
    assert torch.equal(torch.get_rng_state(), random)
    assert threading.active_count() == threads
    if state:
        assert before == {path: (type(c), set(vars(c)), c.training) for path, c in m.named_modules()}
        for p, grad in zip(m.parameters(), held, strict=True):
            assert p.grad is grad
            assert grad is None or torch.equal(grad, torch.ones_like(grad))
        for name, value in m.state_dict().items():
            assert nn.parameter.is_lazy(value) or torch.equal(value, state[name]), name


def test_what_a_block_can_not_repeat_works_where_all_is_kept() -> None:
    m, x = model(InPlace()).double().eval(), torch.randn(8, 3, dtype=torch.float64)
    m[1].train()
    expected = copy.deepcopy(m)
    expected(x).mean().backward()
    xt.accumulate(m, x.split(3), mean, keep="all")
    for p, q in zip(m.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-12, atol=1e-13)


def named(m: nn.Module) -> list[str]:
    """The paths of the blocks."""
    paths = {c: path for path, c in m.named_modules()}
    return [paths[b] for b, _ in blocks(m, {c for c in m.modules() if isinstance(c, nn.BatchNorm1d)})]


def test_blocks_are_the_smallest_modules_with_two_layers() -> None:
    """A list is none, since it is not called; a module with one layer is one if no other has it."""

    def part(n: int) -> nn.Sequential:
        return nn.Sequential(*[each for _ in range(n) for each in (nn.Linear(4, 4), nn.BatchNorm1d(4))])

    assert named(nn.Sequential(part(1), nn.Sequential(part(2), part(3)), nn.BatchNorm1d(4))) == [
        "0",
        "1.0",
        "1.1",
    ]
    assert named(nn.ModuleDict({"a": nn.ModuleList([part(1), part(1)])})) == ["a.0", "a.1"]
    assert named(nn.Sequential(nn.Linear(4, 4))) == []
    assert named(nn.BatchNorm1d(4)) == []


def test_a_long_sequence_is_repeated_in_runs() -> None:
    """Of two layers each; the result is that of the whole batch."""
    parts: list[nn.Module] = []
    for _ in range(7):
        parts += [nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh()]
    m, calls = nn.Sequential(*parts).double(), []
    ((module, forward),) = blocks(m, {c for c in m if isinstance(c, nn.BatchNorm1d)})
    assert module is m
    runs: Callable[..., Any] = forward
    assert [sum(isinstance(c, nn.BatchNorm1d) for c in run) for run in runs.args[0]] == [2, 2, 2, 1]  # type: ignore[attr-defined]
    expected, x = copy.deepcopy(m), torch.randn(9, 4, dtype=torch.float64)
    expected(x).cos().mean().backward()
    m[0].register_forward_hook(lambda *_: calls.append(1))
    xt.accumulate(m, x.split(4), lambda y, _: y.cos().mean())
    assert len(calls) == 6
    for p, q in zip(m.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-12, atol=1e-13)


def test_an_interrupt_ends_all_micro_batches() -> None:
    m, x = model(), torch.randn(8, 3)
    random, threads = torch.get_rng_state(), threading.active_count()

    def interrupted(y: Tensor, batch: Any) -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        xt.accumulate(m, cut((x,), [4, 4]), interrupted)
    assert threading.active_count() == threads
    assert torch.equal(torch.get_rng_state(), random)
    assert m[0][1].num_batches_tracked == 0
