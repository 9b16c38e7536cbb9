"""Derivatives of higher order, and a sharded model, where torch's batch norm is wrong or an error: both side by side.

The right derivatives are those of the formula, written with torch's elementary operations. Each test also asks that
torch is still wrong: when it no longer is, the claim goes, here and in docs/works-with.md.
"""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from definition import generator
from launching import environment
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.func import grad, jvp, vmap
from torch.nn import functional as F

import xhat.torch as xt

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script")  # torch's own forward mode

B, N, C, L = 4, 6, 3, 5
Function = Callable[[Tensor, Tensor, Tensor], Tensor]


def formula(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mu = x.mean((0, 2), keepdim=True)
    var = (x - mu).square().mean((0, 2), keepdim=True)
    return (x - mu) / torch.sqrt(var + 1e-5) * weight[:, None] + bias[:, None]


def theirs(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.batch_norm(x, None, None, weight, bias, True)


def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return xt.batch_norm(x, None, None, weight, bias, True)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X, V, W = (numbers(N, C, L, seed=i) for i in range(3))
WEIGHT, BIAS = numbers(C, seed=3), numbers(C, seed=4)


def scalar(f: Function) -> Callable[[Tensor], Tensor]:
    return lambda x: (W * f(x, WEIGHT, BIAS)).sum()


def first(f: Function) -> Callable[[Tensor], Tensor]:
    """The derivative along V."""
    return lambda x: jvp(scalar(f), (x,), (V,))[1]


def off(found: Tensor, expected: Tensor) -> float:
    """The relative error."""
    return float((found - expected).norm() / expected.norm())


def compare(derivative: Callable[[Function], Tensor]) -> tuple[float, float]:
    """Relative errors of ours and of torch's."""
    right = derivative(formula)
    return off(derivative(ours), right), off(derivative(theirs), right)


def second(f: Function) -> Tensor:
    return jvp(first(f), (X,), (V,))[1]


def reverse_over_forward(f: Function) -> Tensor:
    return grad(first(f))(X)


def reverse_over_a_dual_level(f: Function) -> Tensor:
    x = X.clone().requires_grad_()
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(scalar(f)(forward_ad.make_dual(x, V))).tangent
        assert tangent is not None
        return torch.autograd.grad(tangent, x)[0]


@pytest.mark.parametrize("derivative", [second, reverse_over_forward, reverse_over_a_dual_level])
def test_a_second_derivative_with_a_forward_one_inside(derivative: Callable[[Function], Tensor]) -> None:
    """The second derivative along V; the gradient of the first."""
    mine, torchs = compare(derivative)
    print(f"\nrelative error: ours {mine:.1e}, torch's {torchs:.1e}")
    assert mine < 1e-12 and torchs > 1e-2


INNER = [(1,), (0, 1), (0, 1, 2)]


@pytest.mark.parametrize(
    "dims", [d for d in itertools.product((0, None), repeat=3) if d != (None, None, None)], ids=str
)
@pytest.mark.parametrize("inner", INNER, ids=str)
def test_the_gradient_of_gradients_of_many_tasks(inner: tuple[int, ...], dims: Any) -> None:
    """d/dx of a function of each task's gradients, as in meta-learning; dims: what a task has of its own."""
    arguments = (numbers(B, N, C, L, seed=5), numbers(B, C, seed=6), numbers(B, C, seed=7))
    given = [a if d == 0 else a[0] for a, d in zip(arguments, dims, strict=True)]

    def derivative(f: Function) -> Tensor:
        def task(*given: Tensor) -> Tensor:
            found = grad(lambda *a: (f(*a) * W).tanh().sum(), argnums=inner)(*given)
            return torch.stack([(i * g).square().sum() + g.sum() for i, g in enumerate(found, 1)]).sum()

        return grad(lambda *a: vmap(task, dims)(*a).sum())(*given)

    mine, torchs = compare(derivative)
    print(f"\nrelative error: ours {mine:.1e}, torch's {torchs:.1e}")
    assert mine < 1e-12 and torchs > 1e-2


def test_a_gradient_penalty_is_that_of_the_formula() -> None:
    """torch's is right here, and slow: benchmarks/tools.py has the times."""

    def derivative(f: Function) -> Tensor:
        x, weight = X.clone().requires_grad_(), WEIGHT.clone().requires_grad_()
        (g,) = torch.autograd.grad((W * f(x, weight, BIAS)).tanh().sum(), x, create_graph=True)
        return torch.cat([d.flatten() for d in torch.autograd.grad((g.norm() - 1).square(), (x, weight))])

    assert max(compare(derivative)) < 1e-12


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A process group of this process."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", environment()["GLOO_SOCKET_IFNAME"])
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_a_sharded_model_computes_in_bfloat16() -> None:
    """FSDP2 casts parameters, and not buffers: to a layer of mixed dtypes."""
    x = torch.randn(4, 3, 8, 8, generator=generator("sharded"))

    def model(kind: Any) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 8, 3), kind(8), nn.ReLU())

    def sharded(kind: Any) -> nn.Module:
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16)
        return fully_shard(model(kind), mesh=init_device_mesh("cpu", (1,)), mp_policy=policy)

    with pytest.raises(RuntimeError, match="expected scalar type BFloat16 but found Float"):
        sharded(nn.BatchNorm2d)(x)
    found, plain = sharded(xt.BatchNorm2d), model(nn.BatchNorm2d)
    y, expected = found(x), plain(x)
    assert y.dtype == torch.bfloat16 and found[1].running_var.dtype == torch.float32
    assert off(y.float(), expected) < 2**-7
    y.float().square().sum().backward()
    expected.square().sum().backward()
    for p, q in zip(found.parameters(), plain.parameters(), strict=True):
        assert p.grad is not None
        torch.testing.assert_close(p.grad.full_tensor(), q.grad, rtol=0.05, atol=0.2)
    torch.testing.assert_close(found[1].running_var, plain[1].running_var, rtol=2**-7, atol=1e-3)
