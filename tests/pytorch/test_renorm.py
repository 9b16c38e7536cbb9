"""Batch renormalization: the paper's formula in float64, its gradients with constant r and d, and what surrounds it."""

import copy
import pickle
import sys
from typing import Any

import pytest
import torch
from definition import Problem, definition, generator, relative
from launching import RANKS, failures, world
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import xhat.torch as xt
from xhat.errors import ArgumentError, DegenerateBatchError

sys.path.insert(0, str(RANKS))
import renorm  # the claims that the ranks check

NOW = {"warmup": (0, 0)}


def layer(kind: Any = xt.BatchRenorm1d, channels: int = 4, **options: Any) -> Any:
    """A layer after its warm-up, with running statistics and parameters in float64."""
    g = generator("layer")
    made = kind(channels, **(NOW | options)).double()
    with torch.no_grad():
        made.running_mean.copy_(torch.randn(channels, generator=g))
        made.running_var.copy_(torch.rand(channels, generator=g) + 0.3)
        made.weight.copy_(torch.randn(channels, generator=g))
        made.bias.copy_(torch.randn(channels, generator=g))
    return made


def by_formula(made: Any, x: Tensor, rmax: float, dmax: float, mask: Tensor | None = None) -> Tensor:
    """Algorithm 1 of the paper by torch's operations; r and d are detached, as it says."""
    column = [1, -1, *[1] * (x.dim() - 2)]
    d_ = definition(Problem(x, mask=mask), eps=made.eps)
    mean, sigma = d_.mean, torch.sqrt(d_.var + made.eps)
    sigma_run = torch.sqrt(made.running_var + made.eps)
    r = (sigma / sigma_run).detach().clamp(1 / rmax, rmax)
    d = ((mean - made.running_mean) / sigma_run).detach().clamp(-dmax, dmax)
    xhat = (x - mean.reshape(column)) / sigma.reshape(column)
    y = xhat * r.reshape(column) + d.reshape(column)
    return y * made.weight.reshape(column) + made.bias.reshape(column)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("rmax", "dmax"), [(1.0, 0.0), (1.1, 0.2), (3.0, 5.0), (torch.inf, torch.inf)])
@pytest.mark.parametrize("shape", [(5, 4), (3, 4, 2)])
def test_it_is_the_formula_of_the_paper(
    shape: tuple[int, ...], rmax: float, dmax: float, masked: bool
) -> None:
    """Values, first and second gradients, and the running statistics."""
    made = layer(rmax=rmax, dmax=dmax)
    g = generator("x")
    x = (torch.randn(shape, generator=g, dtype=torch.float64) * 2 + 0.5).requires_grad_()
    mask = torch.rand([shape[0], 1, *shape[2:]], generator=g, dtype=torch.float64) + 0.1 if masked else None
    expected = by_formula(made, x, rmax, dmax, mask)
    before = copy.deepcopy(made)
    y = made(x, mask=mask)
    assert relative(y, expected) < 1e-13
    v = torch.randn(shape, generator=g, dtype=torch.float64)
    inputs = (x, made.weight, made.bias)
    firsts = [torch.autograd.grad((out * v).sum(), inputs, create_graph=True) for out in (y, expected)]
    for got, want in zip(*firsts, strict=True):
        assert relative(got, want) < 1e-12
    seconds = [torch.autograd.grad((dx**2).sum(), (x, made.weight)) for dx, *_ in firsts]
    for got, want in zip(*seconds, strict=True):
        assert relative(got, want) < 1e-11
    found = definition(Problem(x.detach(), mask=mask))
    torch.testing.assert_close(
        made.running_mean, before.running_mean + 0.01 * (found.mean - before.running_mean)
    )
    assert made.steps == 1


def test_unclipped_it_trains_as_it_evaluates() -> None:
    made = layer(rmax=torch.inf, dmax=torch.inf)
    x = torch.randn(6, 4, dtype=torch.float64)
    expected = copy.deepcopy(made).eval()(x)
    torch.testing.assert_close(made(x), expected, rtol=1e-12, atol=1e-12)
    plain = nn.BatchNorm1d(4).double()
    plain.load_state_dict(layer().state_dict(), strict=False)
    assert (plain(x) - expected).abs().max() > 0.1


def test_keras_case() -> None:
    """The inputs and momentum of Keras' test of its renorm, whose corrections are not clipped."""
    x = torch.tensor([[4.0, 6.0, 2.0], [8.0, -2.0, 5.0], [6.0, 4.0, 3.0]], dtype=torch.float64)
    made = layer(channels=3, eps=1e-3, momentum=0.2, rmax=torch.inf, dmax=torch.inf, running_correction=0)
    mean, sigma = x.mean(0), torch.sqrt(x.var(0, correction=0) + 1e-3)
    old_mean, old_var = made.running_mean.clone(), made.running_var.clone()
    sigma_run = torch.sqrt(old_var + 1e-3)
    r, d = sigma / sigma_run, (mean - old_mean) / sigma_run
    expected = ((x - mean) / sigma * r + d) * made.weight + made.bias
    torch.testing.assert_close(made(x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(made.running_mean, old_mean * 0.8 + mean * 0.2, rtol=1e-12, atol=0)
    torch.testing.assert_close(
        made.running_var, old_var * 0.8 + x.var(0, correction=0) * 0.2, rtol=1e-12, atol=0
    )


def test_the_bounds_warm_up() -> None:
    made = xt.BatchRenorm1d(4, warmup=(2, 5), rmax=3.0, dmax=4.0)
    seen = []
    for _ in range(7):
        seen.append([float(b) for b in made.bounds()])
        made(torch.randn(3, 4))
    expected = [[1, 0], [1, 0], [1.5, 1], [2, 2], [2.5, 3], [3, 4], [3, 4]]
    assert torch.tensor(seen).allclose(torch.tensor(expected, dtype=torch.float32))
    made.eval()(torch.randn(3, 4))
    assert made.steps == 7


@pytest.mark.parametrize("value", [0.0, 3.0])
def test_constant_channels_have_finite_gradients(value: float) -> None:
    """The root of a variance of 0 has an infinite derivative; here no gradient goes through it."""
    made = layer(channels=2, eps=1e-3)
    x = torch.full((5, 2), value, dtype=torch.float64)
    x[:, 1] = torch.arange(5)
    x.requires_grad_()
    (made(x) ** 2).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    assert made.weight.grad.isfinite().all()


def test_a_checkpointed_pass_has_the_r_and_d_of_the_first_one() -> None:
    data = [torch.randn(6, 4, dtype=torch.float64) * (k + 1) for k in range(3)]
    gradients = []
    for use in (False, True):
        made, x = layer(momentum=0.5), [t.clone().requires_grad_() for t in data]
        run: Any = (lambda m, t: checkpoint(m, t, use_reentrant=False)) if use else (lambda m, t: m(t))
        sum((run(made, t) ** 3).sum() for t in x).backward()
        gradients.append([t.grad for t in x])
        assert made.steps == 3
    for got, want in zip(gradients[1], gradients[0], strict=True):
        assert torch.equal(got, want)  # type: ignore[arg-type]


def test_a_repeated_pass_that_is_not_remembered_is_an_error() -> None:
    made = layer()
    made._recent = type(made._recent)(maxlen=1)
    x = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    y = checkpoint(made, x, use_reentrant=False)
    made(torch.randn(6, 4, dtype=torch.float64))
    with pytest.raises(ArgumentError, match="repeats none of the last"):
        (y**2).sum().backward()


def test_recalibrate_records_batches_without_corrections() -> None:
    model = nn.Sequential(layer(), nn.Tanh(), layer()).eval()
    x = torch.randn(40, 4, dtype=torch.float64) * 3 + 1
    inner = definition(Problem(x, model[0].weight.detach(), model[0].bias.detach())).y.tanh()
    xt.recalibrate(model, [x], progress=False)
    torch.testing.assert_close(model[2].running_var, inner.var(0, correction=0))
    assert model[0].steps == 0


def test_states_and_copies() -> None:
    made = layer()
    made(torch.randn(6, 4, dtype=torch.float64))
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert other.state_dict().keys() == made.state_dict().keys()
        assert other.steps == 1
    theirs = nn.BatchNorm1d(4).double()
    theirs.num_batches_tracked.fill_(70)  # type: ignore[operator, union-attr]
    made.load_state_dict(theirs.state_dict())
    assert made.steps == 70
    assert made.half().steps.dtype == torch.int64
    made.reset_running_stats()
    assert made.steps == 0
    assert "rmax=3.0, dmax=5.0, warmup=(0, 0)" in repr(made)


def test_frozen_layers_evaluate() -> None:
    made = xt.freeze(layer())
    x = torch.randn(6, 4, dtype=torch.float64)
    torch.testing.assert_close(made.train()(x), copy.deepcopy(made).eval()(x))
    assert made.steps == 0


def test_compiled_and_mapped_it_is_the_same() -> None:
    made = layer(xt.BatchRenorm2d, eps=1e-3)
    x = torch.randn(3, 4, 2, 5, dtype=torch.float64, requires_grad=True)
    y = copy.deepcopy(made)(x)
    (dx,) = torch.autograd.grad((y**2).sum(), x)
    other = copy.deepcopy(made)
    compiled = torch.compile(other, backend="aot_eager", fullgraph=True)(x)
    torch.testing.assert_close(compiled, y, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.autograd.grad((compiled**2).sum(), x)[0], dx, rtol=1e-10, atol=1e-12)
    assert other.steps == 1
    models = [copy.deepcopy(made) for _ in range(2)]
    parameters, buffers = torch.func.stack_module_state(models)
    stacked = torch.stack((x.detach(), 2 * x.detach()))
    mapped = torch.func.vmap(lambda p, b, t: torch.func.functional_call(made, (p, b), (t,)))(
        parameters, buffers, stacked
    )
    for got, t in zip(mapped, stacked, strict=True):
        torch.testing.assert_close(got, copy.deepcopy(made)(t), rtol=1e-12, atol=1e-12)
    assert buffers["steps"].tolist() == [1, 1]


def test_crossq_is_a_preset() -> None:
    made = xt.BatchRenorm1d.crossq(4, rmax=2.0)
    assert (made.eps, made.momentum, made.rmax, made.dmax, made.warmup) == (
        1e-3,
        0.01,
        2.0,
        5.0,
        (100_000, 100_000),
    )


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"rmax": 0.5}, "rmax is 0.5 and dmax is 5.0, expected rmax >= 1"),
        ({"dmax": -1}, "dmax is -1, expected rmax >= 1 and dmax >= 0"),
        ({"warmup": (5, 2)}, r"warmup is \(5, 2\), expected \(a, b\)"),
        ({"track_running_stats": False}, "track_running_stats is False, expected True"),
    ],
)
def test_a_mistake_gets_a_sentence(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ArgumentError, match=f"^BatchRenorm1d: .*{sentence}"):
        xt.BatchRenorm1d(4, **options)


def test_a_failed_call_changes_nothing() -> None:
    made = layer(xt.BatchRenorm1d, nonfinite="raise")
    before = copy.deepcopy(made.state_dict())
    with pytest.raises(ArgumentError, match="NaN or infinity"):
        made(torch.full((3, 4), torch.nan, dtype=torch.float64))
    with pytest.raises(DegenerateBatchError):
        made(torch.ones(1, 4, dtype=torch.float64))
    with pytest.raises(ArgumentError, match="which torch's layer can't express"):
        xt.revert(nn.Sequential(made))
    assert all(torch.equal(v, before[k]) for k, v in made.state_dict().items())
    assert made(torch.ones(0, 4, dtype=torch.float64)).shape == (0, 4)


def test_a_report_shows_no_backward_that_is_not_the_layer_s() -> None:
    from xhat.lens.reporter.model import _gather

    model = nn.Sequential(xt.BatchRenorm1d(4), xt.GhostBatchNorm1d(4, 2), xt.BatchNorm1d(4))
    dys = [dy for _, dy in _gather(model, torch.randn(6, 4), lambda y: (y**2).sum())]
    assert [dy is None for dy in dys] == [True, True, False]
    dys = [dy for _, dy in _gather(model.eval(), torch.randn(6, 4), lambda y: (y**2).sum())]
    assert all(dy is not None for dy in dys)


@pytest.mark.parametrize("claim", renorm.claim.names)
def test_on_two_ranks(claim: str) -> None:
    assert not failures(world("renorm.py", 2), claim)
