"""The operators that recorded graphs hold: their schemas and fake shapes, their derivatives, and what they refuse."""

from typing import Any

import pytest
import torch
from beside import TANGENT, WARNS, X, same
from definition import ACTIVATIONS, LAYOUTS, Problem, batch, definition, problem
from torch import Tensor
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.func import grad, hessian, jvp, vmap

import xhat.torch as xt
from xhat.errors import XhatError

pytestmark = WARNS

CHECKS = ("test_schema", "test_faketensor", "test_autograd_registration")
OPTIONS: list[dict[str, Any]] = [
    dict(residual=False, mask="none", activation="none", correction=0),
    dict(residual=True, mask="none", activation="none", correction=1),
    dict(residual=True, mask="weights", activation="silu", correction=1),
    dict(residual=True, mask="bool", activation="leaky_relu", correction=0),
]
NAMED = pytest.mark.parametrize("options", OPTIONS, ids=str)


def asked(x: Tensor, options: dict[str, Any], affine: str = "affine") -> tuple[Problem, tuple[Any, ...]]:
    """The tensors, and what follows them in the operator's schema."""
    p = problem(x, affine, options["residual"], options["mask"]).leaves()
    kind = None if options["activation"] == "none" else options["activation"]
    return p, (1e-2, options["correction"], kind, 0.1 if kind == "leaky_relu" else 0.0)


def forward(p: Problem, rest: tuple[Any, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """The operator."""
    found: tuple[Tensor, Tensor, Tensor] = torch.ops.xhat.batch_norm(*p, *rest)
    return found


def gradient_arguments(p: Problem, rest: tuple[Any, ...], dy: Tensor) -> tuple[Any, ...]:
    """What the operator of the backward pass is given."""
    y, statistics, _ = forward(p, rest)
    kept = (
        {None: None, "leaky_relu": y.detach(), "silu": p.residual}[rest[2]]
        if p.residual is not None
        else None
    )
    return dy, p.x, p.weight, p.bias, kept, p.mask, statistics, p.residual is not None, *rest


def tracked(nonfinite: str = "propagate", momentum: float | None = 0.1) -> tuple[Any, ...]:
    """What the operator of the running statistics is given."""
    skipped = torch.zeros(5, dtype=torch.long) if nonfinite == "skip" else None
    return (torch.zeros(5), torch.ones(5), torch.tensor(3), skipped, torch.rand(2, 5, dtype=torch.float64),
            torch.tensor(7.0, dtype=torch.float64), momentum, 0, 1, nonfinite)  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_fake_results_lie_as_the_kernels_do(layout: str, dtype: torch.dtype) -> None:
    for options in OPTIONS[0], OPTIONS[2]:
        p, rest = asked(batch(layout, dtype=dtype), options)
        torch.library.opcheck(torch.ops.xhat.batch_norm, (*p, *rest), test_utils=CHECKS)
        for dy in (torch.randn(p.x.shape, dtype=dtype), torch.ones((), dtype=dtype).expand(p.x.shape)):
            arguments = gradient_arguments(p, rest, dy)
            torch.library.opcheck(torch.ops.xhat.batch_norm_backward, arguments, test_utils=CHECKS)


@NAMED
def test_opcheck(options: dict[str, Any]) -> None:
    """Every check, also that of ahead-of-time graphs with shapes that are symbols."""
    p, rest = asked(batch("NCHW").float()[:, :, :2, :3], options)
    torch.library.opcheck(torch.ops.xhat.batch_norm, (*p, *rest))
    arguments = gradient_arguments(p, rest, torch.randn(p.x.shape))
    torch.library.opcheck(torch.ops.xhat.batch_norm_backward, arguments)


@pytest.mark.parametrize("nonfinite", ["propagate", "skip", "raise"])
def test_opcheck_of_the_running_statistics(nonfinite: str) -> None:
    for momentum in (0.1, None):
        torch.library.opcheck(torch.ops.xhat.track, tracked(nonfinite, momentum))


@pytest.mark.filterwarnings("ignore:Input #:UserWarning")  # the statistics, which gradcheck does not vary
@NAMED
@pytest.mark.parametrize("affine", ["affine", "no bias", "not affine"])
def test_the_operators_derivatives(options: dict[str, Any], affine: str) -> None:
    p, rest = asked(X[:, :2, :, :2].clone(), options, affine)

    def y(*given: Tensor) -> Tensor:
        leaves = iter(given)
        return forward(Problem(*(None if t is None else next(leaves) for t in p[:4]), p.mask), rest)[0]  # type: ignore[arg-type]

    assert gradcheck(y, p.asked, fast_mode=True, check_batched_grad=True)
    assert gradgradcheck(y, p.asked, fast_mode=True, check_batched_grad=True)


# ------------------------------------------------------------------------------------------------------- transforms


def both(options: dict[str, Any]) -> tuple[Any, Any]:
    """Losses of x by the operator and by the definition."""
    p, rest = asked(X, options)
    keywords = dict(eps=1e-2, correction=options["correction"], activation=ACTIVATIONS[options["activation"]])
    p = Problem(*(None if t is None else t.detach() for t in p))  # type: ignore[arg-type]
    return (
        lambda x: (forward(p._replace(x=x), rest)[0] ** 3).sum(),
        lambda x: (definition(p._replace(x=x), **keywords).y ** 3).sum(),
    )


@NAMED
def test_an_operator_inside_of_torch_func(options: dict[str, Any]) -> None:
    """A recorded graph that is differentiated or mapped later: torch's own mechanism gives zeros, or nothing at all."""
    ours, theirs = both(options)
    for transform in (
        lambda f: grad(f)(X),
        lambda f: jvp(f, (X,), (TANGENT,)),
        lambda f: jvp(grad(f), (X,), (TANGENT,)),
        lambda f: vmap(grad(f))(torch.stack((X, X.exp()))),
        lambda f: grad(lambda x: grad(f)(x).square().sum())(X),
        lambda f: hessian(lambda s: f(X * s))(torch.ones((), dtype=X.dtype)),
    ):
        same(transform(ours), transform(theirs))


def test_a_tangent_outside_of_torch_func_is_refused() -> None:
    p, rest = asked(X, OPTIONS[0])
    x, w = p.x.detach(), torch.ones(3, dtype=torch.float64)
    arguments = gradient_arguments(p, rest, TANGENT)
    with forward_ad.dual_level(), torch.no_grad():
        forward(p, rest)  # a level without tangents changes nothing
        dual = forward_ad.make_dual(x, TANGENT)
        with pytest.raises(RuntimeError, match=r"a recorded graph .* has no forward-mode derivative"):
            torch.ops.xhat.batch_norm(dual, w, w, None, None, *rest)
        with pytest.raises(RuntimeError, match=r"a recorded graph .* has no forward-mode derivative"):
            torch.ops.xhat.batch_norm(x, forward_ad.make_dual(w, w), w, None, None, *rest)
        with pytest.raises(RuntimeError, match=r"a recorded graph .* has no forward-mode derivative"):
            torch.ops.xhat.batch_norm_backward(dual, *arguments[1:])
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match="jvp"):  # torch's own sentence
        torch.ops.xhat.batch_norm(forward_ad.make_dual(x, TANGENT), p.weight, p.bias, None, None, *rest)


def test_a_gradient_of_the_mask_is_refused_where_there_is_none() -> None:
    """The layer finds another way for it; a graph that was recorded without it can't."""
    p, rest = asked(X, OPTIONS[2])
    assert p.mask is not None
    learned = p.mask.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="no gradient with respect to its mask"):
        forward(p._replace(mask=learned), rest)
    y = xt.batch_norm(X, None, None, training=True, mask=learned)
    found = torch.autograd.grad(y.pow(3).sum(), learned)
    expected = torch.autograd.grad(definition(Problem(X, mask=learned)).y.pow(3).sum(), learned)
    same(found, expected)


def test_statistics_are_no_way_for_a_gradient() -> None:
    p, rest = asked(X, OPTIONS[0])
    y, statistics, count = forward(p, rest)
    assert y.requires_grad and not statistics.requires_grad and not count.requires_grad


def test_an_empty_batch_in_a_graph() -> None:
    """A graph with sizes that are symbols may meet one: it has gradients of 0, and moves nothing."""
    p, rest = asked(torch.empty(0, 3, 2), OPTIONS[0])
    y, statistics, count = forward(p, rest)
    y.sum().backward()
    assert y.shape == (0, 3, 2) and count == 0
    same([p.weight.grad, p.bias.grad], [torch.zeros(3), torch.zeros(3)])  # type: ignore[union-attr]
    mean, var, batches = torch.ones(3), torch.ones(3), torch.tensor(3)
    torch.ops.xhat.track(mean, var, batches, None, statistics, count, None, 0, 1, "propagate")
    same([mean, var, batches], [torch.ones(3), torch.ones(3), torch.tensor(3)])


@pytest.mark.parametrize("nonfinite", ["propagate", "skip"])
@pytest.mark.parametrize("momentum", [0.1, None])
def test_statistics_in_float32(momentum: float | None, nonfinite: str) -> None:
    """As other devices have them."""
    found = []
    for dtype in (torch.float32, torch.float64):
        mean, var, batches, skipped, statistics, count, *rest = tracked(nonfinite, momentum)
        statistics = statistics * 0 + torch.linspace(-1, 3, 10).reshape(2, 5)
        torch.ops.xhat.track(mean, var, batches, skipped, statistics.to(dtype), count.to(dtype), *rest)
        found.append((mean, var, batches, skipped))
    torch.testing.assert_close(found[0], found[1])


def test_operators_check_what_they_are_given() -> None:
    """They read memory by address, and anybody may call them."""
    p, rest = asked(X.float(), OPTIONS[0])
    arguments = gradient_arguments(p, rest, TANGENT.float())
    forward_of, backward_of, track = (
        getattr(torch.ops.xhat, name) for name in ("batch_norm", "batch_norm_backward", "track")
    )
    one = torch.ones(2)
    wrong: list[tuple[Any, tuple[Any, ...], str]] = [
        (forward_of, (p.x, one, None, None, None, *rest), r"weight has shape \(2,\)"),
        (forward_of, (p.x, None, None, p.x[:1], None, *rest), "residual has shape"),
        (forward_of, (p.x[:1, :, :1, :1], None, None, None, None, *rest), "more than 1 value per channel"),
        (forward_of, (p.x, None, None, None, None, 1e-5, 0, "cubic", 0.0), "activation is 'cubic'"),
        (forward_of, (p.x, None, None, None, None, 0.0, 0, None, 0.0), "eps is 0.0"),
        (backward_of, (arguments[0][:1], *arguments[1:]), "dy has shape"),
        (backward_of, (arguments[0].double(), *arguments[1:]), r"dy has shape .* dtype torch.float64"),
        (
            backward_of,
            (*arguments[:6], torch.ones(2, 2, dtype=torch.float64), *arguments[7:]),
            "statistics have shape",
        ),
        (
            backward_of,
            (*arguments[:6], torch.ones(2, 3), *arguments[7:]),
            "statistics have dtype torch.float32",
        ),
        (backward_of, (*arguments[:7], True, 1e-5, 0, "silu", 0.0), "saved is missing"),
        (track, (torch.ones(3), *tracked()[1:]), "statistics have shape"),
    ]
    for operator, given, said in wrong:
        with pytest.raises(XhatError, match=said):
            operator(*given)
    strided = arguments[6].T.contiguous().T
    same(backward_of(*arguments[:6], strided, *arguments[7:])[0], backward_of(*arguments)[0])
