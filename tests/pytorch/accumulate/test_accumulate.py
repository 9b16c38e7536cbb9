"""Exact micro-batches beside one pass of the whole batch: gradients, running statistics, counters, random numbers."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from normalized_networks import build, cut, data, loss, off, same, whole
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import xhat.torch as xt


@pytest.mark.parametrize("keep", ["inputs", "all", "host", "folder"])
def test_resnet20_has_the_gradients_of_the_whole_batch(keep: str, tmp_path: Path) -> None:
    """To 1e-12, with a last micro-batch that is smaller, whatever is kept and where."""
    model, batch = build("resnet20"), data(11, 16)
    expected, value = whole(model, batch)
    found = xt.accumulate(model, cut(batch, [4, 4, 3]), loss, keep=tmp_path if keep == "folder" else keep)
    assert off(found, value) < 1e-12
    assert not found.requires_grad
    same(model, expected, 1e-12)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["densenet", "unet", "mobilenetv3_small_050"])
def test_other_networks_have_the_gradients_of_the_whole_batch(name: str) -> None:
    """Concatenations, skip connections, and timm's BatchNormAct2d, which stays what it was."""
    model, batch = build(name), data(5, 32, name)
    for m in model.modules():
        if isinstance(m, nn.Dropout) or type(m).__name__ == "DropPath":
            m.eval()
    kinds = [type(m) for m in model.modules()]
    expected, _ = whole(model, batch)
    xt.accumulate(model, cut(batch, [2, 2, 1]), loss)
    same(model, expected, 1e-11)
    assert [type(m) for m in model.modules()] == kinds
    assert all("forward" not in vars(m) for m in model.modules())


def test_plain_accumulation_differs() -> None:
    """What the tests above would find if each micro-batch had statistics of its own."""
    model, batch = build("resnet20"), data(8, 16)
    expected, _ = whole(model, batch)
    for part in cut(batch, [4, 4]):
        (loss(model(part[0]), part) / 2).backward()
    assert off(model[0].weight.grad, expected[0].weight.grad) > 0.05


def test_float32_has_the_errors_of_rounding() -> None:
    """Beside float64: no more than twice those of the whole batch in float32."""
    model, batch = build("resnet20"), data(12, 16)
    exact, _ = whole(model, batch)
    narrow, x = copy.deepcopy(model).float(), (batch[0].float(), batch[1])
    once, _ = whole(narrow, x)
    xt.accumulate(narrow, cut(x, [4, 4, 4]), loss)

    def error(of: nn.Module) -> float:
        pairs = zip(of.parameters(), exact.parameters(), strict=True)
        return sum(float((p.grad.double() - q.grad).square().sum() / q.grad.square().sum()) for p, q in pairs)  # type: ignore[union-attr]

    assert error(narrow) < 4 * error(once)


def test_new_gradients_are_added_to_old_ones() -> None:
    """In the tensors that are there, as autograd does."""
    model, batch = build("resnet20"), data(4, 16)
    first = model[0].weight
    expected = copy.deepcopy(model)
    held = None
    for _ in range(2):
        held = first.grad
        loss(expected(batch[0]), batch).backward()
        xt.accumulate(model, cut(batch, [2, 2]), loss)
    same(model, expected, 1e-12)
    assert first.grad is held


class Odd(nn.Module):
    """A layer that is called twice, averages over all batches, and one without statistics; masks and residuals."""

    def __init__(self) -> None:
        super().__init__()
        self.twice = nn.BatchNorm1d(4, momentum=None)
        self.renorm = xt.BatchRenorm1d(4, warmup=(0, 0), rmax=1.5, dmax=0.5)
        self.ghost = xt.GhostBatchNorm1d(4, 2)
        self.stateless = nn.BatchNorm1d(4, track_running_stats=False, affine=False).eval()
        self.act = xt.BatchNorm1d(4, activation="silu", correction=1, nonfinite="skip")
        self.frozen = xt.freeze(xt.BatchNorm1d(4))
        self.mix = nn.Linear(4, 4)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """Every layer once, the first twice."""
        y = self.mix(self.twice(self.mix(self.twice(x))))
        y = self.stateless(self.ghost(self.mix(self.renorm(y, mask=mask))))
        return self.mix(self.frozen(self.act(y, residual=x, mask=mask)))


@pytest.mark.parametrize("repeated", [False, True])
def test_every_kind_of_layer(repeated: bool) -> None:
    """Also where the model itself repeats its forward pass (activation checkpointing)."""
    torch.manual_seed(0)
    model, g = Odd().double(), torch.Generator().manual_seed(3)
    x, mask = torch.randn(14, 4, generator=g).double() + 1, torch.rand(14, 1, generator=g).double() + 0.1
    for _ in range(2):
        expected = copy.deepcopy(model)
        expected(x, mask).cos().mean().backward()

        def forward(model: nn.Module, batch: Any) -> Any:
            return checkpoint(model, *batch, use_reentrant=False) if repeated else model(*batch)

        xt.accumulate(model, cut((x, mask), [4, 4, 6]), lambda y, _: y.cos().mean(), forward=forward)
        same(model, expected, 1e-12)
        model.zero_grad()
    assert model.renorm.steps == model.act.num_batches_tracked == 2
    assert model.twice.num_batches_tracked == 4


class Masked(nn.Module):
    """A dropout with these masks, one for each call."""

    def __init__(self, masks: list[Tensor]) -> None:
        super().__init__()
        self.masks = masks

    def forward(self, x: Tensor) -> Tensor:
        return x * self.masks.pop(0)


def with_dropout() -> nn.Sequential:
    """Two blocks with dropout around their batch norms."""
    torch.manual_seed(0)
    block = [
        nn.Linear(6, 6),
        nn.Dropout(0.4),
        nn.BatchNorm1d(6),
        nn.ReLU(),
        nn.Linear(6, 6),
        nn.BatchNorm1d(6),
    ]
    parts = [nn.Sequential(*block, nn.Dropout(0.4)), nn.Sequential(*copy.deepcopy(block)), nn.Linear(6, 6)]
    return nn.Sequential(*parts).double()


def test_a_repeated_block_has_the_same_dropout() -> None:
    """The masks of the first pass, in the whole batch, give the same gradients; each micro-batch has its own."""
    model, x = with_dropout(), torch.randn(9, 6, dtype=torch.float64)
    state, reference = torch.get_rng_state(), copy.deepcopy(model)
    dropouts = [m for m in model.modules() if isinstance(m, nn.Dropout)]
    masks: dict[nn.Module, list[Tensor]] = {m: [] for m in dropouts}
    hooks = [
        m.register_forward_hook(lambda m, args, y: masks[m].append((y / args[0]).detach())) for m in dropouts
    ]
    xt.accumulate(model, x.split(3), lambda y, _: y.cos().mean())
    assert not torch.equal(torch.get_rng_state(), state)
    for hook in hooks:
        hook.remove()
    for m, twin in zip(dropouts, (m for m in reference.modules() if isinstance(m, nn.Dropout)), strict=True):
        first, again = masks[m][:3], masks[m][3:]
        # The backward pass takes the micro-batches in the same order, and repeats no last module of a block.
        assert len(again) == (0 if m is model[0][-1] else 3)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=False))
        assert not torch.equal(first[0], first[1])
        twin.forward = Masked([torch.cat(first)]).forward  # type: ignore[method-assign]
    reference(x).cos().mean().backward()
    same(model, reference, 1e-12)


def test_random_numbers_follow_from_the_seed() -> None:
    """The same call with the same seed has the same bits, and another seed others."""
    x, found = torch.randn(8, 6, dtype=torch.float64), []
    for seed in (1, 1, 2):
        model = with_dropout()
        torch.manual_seed(seed)
        found.append(xt.accumulate(model, x.split(4), lambda y, _: y.cos().mean()))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_autocast_holds_in_each_micro_batch() -> None:
    """In the repeated blocks too: bfloat16 inside, and gradients near those of the whole batch under autocast."""
    model, batch = build("resnet20").float(), data(8, 16)
    x = batch[0].float(), batch[1]
    seen: list[torch.dtype] = []
    with torch.autocast("cpu", torch.bfloat16):
        expected, value = whole(model, x)
        for m in model.modules():
            if isinstance(m, nn.Conv2d):
                m.register_forward_hook(lambda m, args, y: seen.append(y.dtype))
        found = xt.accumulate(model, cut(x, [4, 4]), loss)
    assert set(seen) == {torch.bfloat16}
    assert len(seen) == 2 * (1 + 2 * 20)  # the stem once, what is in blocks twice
    assert off(found, value) < 0.01
    pairs = list(zip(model.parameters(), expected.parameters(), strict=True))
    assert (
        off(torch.cat([p.grad.flatten() for p, _ in pairs]), torch.cat([q.grad.flatten() for _, q in pairs]))
        < 0.05
    )  # type: ignore[union-attr]
    assert not torch.is_autocast_enabled("cpu")


def test_weights_are_those_of_another_mean() -> None:
    """A mean over tokens that are no padding: weights are the numbers of these."""
    model, g = nn.Sequential(nn.BatchNorm1d(3), nn.Conv1d(3, 1, 1)).double(), torch.Generator().manual_seed(0)
    x = torch.randn(6, 3, 5, generator=g).double()
    tokens = torch.arange(5) < torch.tensor([5, 1, 2, 5, 4, 1])[:, None]

    def mean(y: Tensor, batch: Any) -> Tensor:
        return y.square()[:, 0][batch[1]].mean()

    expected, value = whole(model, (x, tokens), mean)
    parts = cut((x, tokens), [2, 4])
    found = xt.accumulate(model, parts, mean, weights=[int(t.sum()) for _, t in parts])
    assert off(found, value) < 1e-12
    same(model, expected, 1e-12)


def test_dicts_and_a_compiled_model() -> None:
    """A micro-batch may be a dict of arguments; a compiled model runs without its graph."""
    inner = Odd().double()
    compiled: Any = torch.compile(inner, backend="eager")
    x, mask = torch.randn(8, 4).double(), torch.ones(8, 1).double()
    parts = [{"x": a, "mask": b} for a, b in cut((x, mask), [4, 4])]
    expected = copy.deepcopy(inner)
    expected(x, mask).cos().mean().backward()
    xt.accumulate(compiled, parts, lambda y, _: y.cos().mean())
    same(inner, expected, 1e-12)


def test_less_than_a_third_is_kept_of_resnet20() -> None:
    """The bytes that autograd keeps of all micro-batches together, each storage once, without parameters."""
    model, batch = build("resnet20"), data(8, 16)
    own = {t.untyped_storage().data_ptr() for t in model.parameters()}

    def kept(keep: str) -> int:
        found: dict[int, Tensor] = {}

        def pack(t: Tensor) -> Tensor:
            found[t.untyped_storage().data_ptr()] = t
            return t

        def forward(model: nn.Module, batch: Any) -> Any:
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
                return model(batch[0])

        xt.accumulate(model, cut(batch, [2] * 4), loss, forward=forward, keep=keep)
        return sum(t.untyped_storage().nbytes() for pointer, t in found.items() if pointer not in own)

    assert kept("inputs") < kept("all") / 3
