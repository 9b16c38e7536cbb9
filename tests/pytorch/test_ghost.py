"""Ghost batch norm: a loop of layers over the groups, in float64; uneven groups, masks, and what surrounds it."""

import copy
import pickle
from typing import Any

import pytest
import torch
from definition import Problem, definition, generator, relative
from torch import Tensor, nn

import xhat.torch as xt
from xhat.errors import ArgumentError, DegenerateBatchError
from xhat.torch.inputs import Inputs

KINDS = {2: xt.GhostBatchNorm1d, 3: xt.GhostBatchNorm1d, 4: xt.GhostBatchNorm2d, 5: xt.GhostBatchNorm3d}


def rows_of(n: int, groups: int) -> list[Tensor]:
    """The samples of each group, by the docstring."""
    size, more = divmod(n, groups)
    first, index = more * (size + 1), torch.arange(n)
    return [index[:first][k::more] for k in range(more)] + [
        index[first:][k :: groups - more] for k in range(groups - more)
    ]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [(12, 5), (8, 5, 3), (11, 5, 2, 3), (7, 5, 2, 1, 3)])
@pytest.mark.parametrize("groups", [2, 3])
def test_each_group_is_a_batch(shape: tuple[int, ...], groups: int, masked: bool) -> None:
    """y, the gradients, and running statistics of the whole batch."""
    g = generator("ghost")
    x, residual, v = (torch.randn(shape, generator=g, dtype=torch.float64) * 2 + 1 for _ in range(3))
    mask = torch.rand(shape[0], 1, *shape[2:], generator=g, dtype=torch.float64) + 0.1 if masked else None
    made: Any = KINDS[len(shape)](5, groups, momentum=1.0, activation="silu").double()
    for p in made.parameters():
        nn.init.normal_(p, generator=g)
    x.requires_grad_()
    residual.requires_grad_()
    y = made(x, residual, mask)
    expected = torch.zeros_like(y)
    for rows in rows_of(shape[0], groups):
        own = Problem(x[rows], made.weight, made.bias, residual[rows], None if mask is None else mask[rows])
        expected = expected.index_add(0, rows, definition(own, activation="silu").y)
    assert relative(y, expected) < 1e-13
    inputs = (x, residual, made.weight, made.bias)
    wanted = torch.autograd.grad((expected * v).sum(), inputs)
    for got, want in zip(torch.autograd.grad((y * v).sum(), inputs), wanted, strict=True):
        assert relative(got, want) < 1e-12
    whole = definition(Problem(x.detach(), mask=mask))
    torch.testing.assert_close(made.running_mean, whole.mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(made.running_var, whole.var * whole.m / (whole.m - 1), rtol=1e-12, atol=1e-12)
    assert made.num_batches_tracked == 1


def test_groups_make_a_difference() -> None:
    x = torch.randn(8, 5, dtype=torch.float64)
    assert (xt.GhostBatchNorm1d(5, 2)(x) - xt.BatchNorm1d(5)(x)).abs().max() > 0.1


@pytest.mark.parametrize("correction", [0, 1])
def test_corrections_are_merged(correction: int) -> None:
    x = torch.randn(7, 5, dtype=torch.float64) * 3
    made = xt.GhostBatchNorm1d(5, 3, momentum=1.0, correction=correction, running_correction=0).double()
    made(x)
    torch.testing.assert_close(made.running_var, x.var(0, correction=0), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("n", "groups", "sizes"), [(5, 4, [3, 2]), (3, 2, [3]), (9, 4, [3, 2, 2, 2]), (4, 9, [2, 2])]
)
def test_no_group_has_one_value(n: int, groups: int, sizes: list[int]) -> None:
    x = torch.randn(n, 5, dtype=torch.float64)
    y = xt.GhostBatchNorm1d(5, groups).double()(x)
    found = rows_of(n, len(sizes))
    assert [len(rows) for rows in found] == sizes
    for rows in found:
        torch.testing.assert_close(y[rows], definition(Problem(x[rows])).y)
    with pytest.raises(DegenerateBatchError):
        xt.GhostBatchNorm1d(5, groups)(torch.ones(1, 5))
    image = torch.randn(1, 5, 2, 3)
    torch.testing.assert_close(xt.GhostBatchNorm2d(5, groups)(image), xt.BatchNorm2d(5)(image))


def test_a_view_is_not_copied() -> None:
    """The layer with more channels has the memory of x, and so the kernels read x itself."""
    from xhat.torch.ghost import _side_by_side

    x = torch.randn(8, 5, 3)
    part = _side_by_side(Inputs(x, None, None, None, None, None, None), 4)
    assert part.x.shape == (2, 20, 3)
    assert part.x.data_ptr() == x.data_ptr()


@pytest.mark.parametrize("n", [6, 7])
def test_mapped_it_is_the_same(n: int) -> None:
    models = [xt.GhostBatchNorm1d(5, 2).double() for _ in range(2)]
    parameters, buffers = torch.func.stack_module_state(models)
    x = torch.randn(2, n, 5, dtype=torch.float64)
    call = torch.func.vmap(lambda p, b, t: torch.func.functional_call(models[0], (p, b), (t,)))
    for k, y in enumerate(call(parameters, buffers, x)):
        torch.testing.assert_close(y, models[k](x[k]), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(buffers["running_var"][k], models[k].running_var, rtol=1e-12, atol=0)


def test_what_surrounds_it() -> None:
    made = xt.GhostBatchNorm2d(5, 2).double()
    x = torch.randn(6, 5, 2, 3, dtype=torch.float64, requires_grad=True)
    expected = copy.deepcopy(made)(x)
    compiled = torch.compile(copy.deepcopy(made), backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(compiled, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(pickle.loads(pickle.dumps(made))(x), expected)
    last = x.detach().to(memory_format=torch.channels_last)
    y = copy.deepcopy(made)(last)
    torch.testing.assert_close(y, expected)
    assert y.is_contiguous(memory_format=torch.channels_last)
    made(x)
    plain = nn.BatchNorm2d(5).double()
    plain.load_state_dict(made.state_dict())
    torch.testing.assert_close(made.eval()(x), plain.eval()(x))
    before = made.running_var.clone()  # type: ignore[union-attr]
    xt.freeze(made).train()
    torch.testing.assert_close(made(x), plain(x))
    assert torch.equal(made.running_var, before)  # type: ignore[arg-type]
    assert "groups=2" in repr(made)
    with pytest.raises(ArgumentError, match="the class GhostBatchNorm2d"):
        xt.revert(nn.Sequential(xt.unfreeze(made)))
    model = nn.Sequential(xt.GhostBatchNorm2d(5, 3)).double()
    xt.recalibrate(model, [x.detach()], progress=False)
    torch.testing.assert_close(model[0].running_var, definition(Problem(x.detach())).var)


@pytest.mark.parametrize("groups", [0, -1, 2.0, True, None])
def test_groups_that_are_none_get_a_sentence(groups: Any) -> None:
    with pytest.raises(
        ArgumentError, match=r"^GhostBatchNorm1d: groups is .*, expected an int of at least 1\.$"
    ):
        xt.GhostBatchNorm1d(5, groups)
