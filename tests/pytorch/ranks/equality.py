"""The results of a batch that is split over ranks, against the definition on the whole batch."""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from claims import Claims, close, summed
from definition import ACTIVATIONS, LAYOUTS, Problem, batch, definition, generator, option_sets, problem
from torch import Tensor

from xhat.torch import SyncBatchNorm

claim = Claims()
ROWS, CHANNELS = 12, 5
BOUNDS = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.5e-2}
SPLITS = {
    "even": {1: [12], 2: [6, 6], 3: [4, 4, 4], 4: [3, 3, 3, 3]},
    "uneven": {1: [12], 2: [1, 11], 3: [2, 9, 1], 4: [1, 6, 3, 2]},
    "empty": {1: [12], 2: [0, 12], 3: [5, 0, 7], 4: [0, 7, 0, 5]},
}


def splits(rows: int = ROWS) -> Iterator[tuple[str, slice]]:
    """This rank's rows, for every split of the batch."""
    for name, sizes in SPLITS.items():
        first = sum(sizes[dist.get_world_size()][: dist.get_rank()])
        yield name, slice(first, first + sizes[dist.get_world_size()][dist.get_rank()])


def numbers(*shape: int, seed: str = "x") -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def part_of(p: Problem, rows: slice) -> Problem:
    """This rank's part, of tensors that ask for their gradients."""
    cut = [None if t is None else t[rows] for t in (p.x, p.residual, p.mask)]
    return Problem(cut[0], p.weight, p.bias, *cut[1:]).leaves()


def layer_for(p: Problem, **options: Any) -> SyncBatchNorm:
    """A layer with the problem's parameters."""
    wide = torch.float64 if p.x.dtype == torch.float64 else torch.float32
    layer = SyncBatchNorm(p.x.shape[1], dtype=wide, affine=False, eps=1e-3, momentum=0.3, **options)
    for name in ("weight", "bias"):
        value = getattr(p, name)
        layer.register_parameter(name, None if value is None else torch.nn.Parameter(value.detach().clone()))
    return layer


def check(whole: Problem, rows: slice, what: Any, layer: SyncBatchNorm | None = None, **options: Any) -> None:
    """y, all gradients and the running statistics of one step, in the dtype of x."""
    bound = BOUNDS[whole.x.dtype]
    reference = whole.leaves()
    expected = definition(
        reference, eps=1e-3, correction=options.get("correction", 0), activation=options.get("activation")
    )
    dy = numbers(*whole.x.shape, seed="dy").to(whole.x.dtype)
    if options.get("activation") and whole.x.dtype != torch.float64:
        dy = dy * (expected.pre.abs() > 0.05)  # where rounding does not decide about the slope
    wanted = iter(torch.autograd.grad(expected.y, reference.asked, dy.double()))

    mine = part_of(whole, rows)
    layer = layer or layer_for(whole, **options)
    y = layer(mine.x, mine.residual, mine.mask)
    assert y.dtype == whole.x.dtype
    close(y, expected.y[rows], bound, (what, "y"))
    inputs = {"dx": mine.x, "dweight": layer.weight, "dbias": layer.bias, "dresidual": mine.residual}
    inputs = {name: t for name, t in inputs.items() if t is not None}
    got = torch.autograd.grad(y, list(inputs.values()), dy[rows].to(y.dtype))
    for (name, leaf), d in zip(inputs.items(), got, strict=True):
        assert d.dtype == leaf.dtype and d.shape == leaf.shape
        e = next(wanted)
        local = name in ("dx", "dresidual")
        close(d if local else summed(d.double()), e[rows] if local else e, bound * 4, (what, name))
    factor = (expected.m - options.get("correction", 0)) / (expected.m - 1)
    close(
        layer.running_mean, 0.3 * expected.mean, max(bound, 1e-12) if y.dtype == torch.float64 else 1e-6, what
    )
    close(
        layer.running_var,
        0.7 + 0.3 * factor * expected.var,
        1e-12 if y.dtype == torch.float64 else 1e-6,
        what,
    )
    assert layer.num_batches_tracked == 1


@claim
def a_split_batch_gives_what_the_whole_batch_gives() -> None:
    chosen = list(option_sets(training=True))
    for k, (name, rows) in enumerate(splits()):
        for o in chosen[k::7]:
            p = problem(numbers(ROWS, CHANNELS, 4), o["affine"], o["residual"], o["mask"])
            check(p, rows, (name, o), correction=o["correction"], activation=ACTIVATIONS[o["activation"]])


@claim
def every_dtype_is_held_to_its_rounding() -> None:
    for (name, rows), dtype in itertools.product(splits(), BOUNDS):
        for activation in (None, "relu"):
            p = problem(
                numbers(ROWS, CHANNELS, 7).to(dtype), residual=True, mask="weights", dtype=torch.float32
            )
            if dtype == torch.float64:
                p = problem(numbers(ROWS, CHANNELS, 7), residual=True, mask="weights")
            check(p, rows, (name, dtype, activation), activation=activation)


@claim
def every_layout_and_any_number_of_dimensions() -> None:
    """Channels last among them, (N, C), and one that the kernels copy."""
    ranks, rank = dist.get_world_size(), dist.get_rank()
    for layout in LAYOUTS:
        x = batch(layout)
        rows = slice(len(x) * rank // ranks, len(x) * (rank + 1) // ranks)
        check(problem(x), rows, layout)


@claim
def far_from_zero_no_digit_is_lost() -> None:
    for name, rows in splits():
        x = (numbers(ROWS, CHANNELS, 50) + 1e6).float()
        layer = SyncBatchNorm(CHANNELS, dtype=torch.float32)
        expected = definition(Problem(x.double()), eps=1e-5).y
        got = layer(x[rows])
        assert (got - expected[rows]).abs().max() <= 2e-6 if len(got) else True, name
        factor = expected.numel() / CHANNELS / (expected.numel() / CHANNELS - 1)
        close(
            layer.running_var,
            0.9 + 0.1 * factor * x.double().transpose(0, 1).flatten(1).var(1, correction=0),
            1e-7,
            name,
        )


@claim
def the_gradient_of_the_gradient() -> None:
    chosen = list(option_sets(training=True))
    for k, (name, rows) in enumerate(splits()):
        for o in chosen[2 + k :: 17]:
            p = problem(numbers(ROWS, CHANNELS, 3), o["affine"], o["residual"], o["mask"])
            dy = numbers(*p.x.shape, seed="dy")

            def second(
                p: Problem, y: Tensor, parameters: list[Tensor], dy: Tensor, v: Tensor
            ) -> list[Tensor]:
                asked = [t for t in (p.x, p.residual) if t is not None] + parameters
                dy = dy.clone().requires_grad_()
                first = torch.autograd.grad(y, asked, dy, create_graph=True)
                cotangents = [v if f.dim() == 3 else numbers(CHANNELS, seed="a") for f in first]
                return list(torch.autograd.grad(first, [dy, *asked], cotangents, allow_unused=True))

            v = numbers(*p.x.shape, seed="v")
            whole = p.leaves()
            kind = ACTIVATIONS[o["activation"]]
            y = definition(whole, eps=1e-3, correction=o["correction"], activation=kind).y
            expected = second(whole, y, [t for t in (whole.weight, whole.bias) if t is not None], dy, v)
            mine, layer = part_of(p, rows), layer_for(p, correction=o["correction"], activation=kind)
            y = layer(mine.x, mine.residual, mine.mask)
            got = second(mine, y, list(layer.parameters()), dy[rows], v[rows])
            for i, (g, e) in enumerate(zip(got, expected, strict=True)):
                if e is None:
                    assert g is None or not g.any(), (name, o, i)
                elif e.dim() == 3:
                    g = torch.zeros_like(e[rows]) if g is None else g
                    close(g, e[rows], 1e-11, (name, o, i))
                else:
                    close(summed(torch.zeros_like(e) if g is None else g), e, 1e-11, (name, o, i))
