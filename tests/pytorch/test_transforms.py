"""torch.func: the values of each transform, beside torch's own layer in float64, and
beside the definition for what torch's layer has not.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from beside import CHANNELS, TANGENT, WARNS, X, layers, same
from definition import Problem, definition, problem
from torch import Tensor, nn
from torch.func import (
    functional_call,
    functionalize,
    grad,
    hessian,
    jacfwd,
    jacrev,
    jvp,
    linearize,
    stack_module_state,
    vjp,
    vmap,
)

import xhat.torch as xt

pytestmark = [
    WARNS,
    pytest.mark.filterwarnings("ignore:Attempted to insert a get_attr Node:UserWarning"),  # torch's linearize
]

Loss = Callable[..., Tensor]


def state(layer: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Copies of parameters and buffers."""
    return (
        {k: v.detach().clone() for k, v in layer.named_parameters()},
        {k: v.clone() for k, v in layer.named_buffers()},
    )


def loss_of(layer: nn.Module) -> Loss:
    """A loss of x and the parameters; its buffers are copies made for the call."""

    def loss(x: Tensor, p: dict[str, Tensor]) -> Tensor:
        buffers = {k: v + torch.zeros_like(x.reshape(-1)[0]).to(v.dtype) for k, v in layer.named_buffers()}
        y = functional_call(layer, (p, buffers), (x,))
        return (y**3 * torch.linspace(-1, 1, CHANNELS, dtype=x.dtype).reshape(-1, 1, 1)).sum() + (
            y**2 * x
        ).mean()

    return loss


# Each takes a loss of x and the parameters, x, and the parameters.
TRANSFORMS: dict[str, Callable[[Loss, Tensor, Any], Any]] = {
    "grad of x": lambda f, x, p: grad(f)(x, p),
    "grad of the parameters": lambda f, x, p: grad(f, argnums=1)(x, p),
    "vjp": lambda f, x, p: vjp(f, x, p)[1](torch.ones((), dtype=x.dtype)),
    "jvp": lambda f, x, p: jvp(f, (x, p), (TANGENT, {k: v.cos() for k, v in p.items()})),
    "linearize": lambda f, x, p: linearize(lambda a: f(a, p), x)[1](TANGENT),
    "forward over reverse": lambda f, x, p: jvp(lambda a: grad(f)(a, p), (x,), (TANGENT,)),
    "reverse over forward": lambda f, x, p: grad(lambda a: jvp(lambda b: f(b, p), (a,), (TANGENT,))[1])(x),
    "grad of grad": lambda f, x, p: grad(lambda a: grad(f)(a, p).square().sum())(x),
    "jacrev": lambda f, x, p: jacrev(f, argnums=1)(x, p),
    "jacfwd": lambda f, x, p: jacfwd(f, argnums=1)(x, p),
    "hessian of the parameters": lambda f, x, p: hessian(f, argnums=1)(x, p),
    "hessian of x": lambda f, x, p: hessian(f)(x[:2, :, :1, :2], p),
    "vmap of grad": lambda f, x, p: vmap(grad(f), (0, None))(torch.stack((x, x.flip(0) * 2)), p),
    "vmap over parameters": lambda f, x, p: vmap(lambda s: f(x, {k: v * s for k, v in p.items()}))(x[0, 0, 0]),
    "vmap of vmap": lambda f, x, p: vmap(
        lambda a: vmap(lambda s: f(a * s, p))(x[0, 0, 0])
    )(torch.stack((x, x.exp()), 1).movedim(1, 0)),
    "vmap of a vjp": lambda f, x, p: vmap(vjp(lambda a: f(a, p) * a[0, 0, 0], x)[1])(torch.eye(5, dtype=x.dtype)),
    "functionalize": lambda f, x, p: functionalize(f)(x, p),
    "grad of functionalize": lambda f, x, p: grad(functionalize(f))(x, p),
}  # fmt: skip


@pytest.mark.parametrize("name", TRANSFORMS)
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_a_transform_gives_the_values_of_torchs_layer(name: str, training: bool) -> None:
    ours, theirs = layers(training)
    got, expected = (TRANSFORMS[name](loss_of(layer), X, state(layer)[0]) for layer in (ours, theirs))
    if name == "reverse over forward" and training:  # torch takes the batch's statistics for constants there
        with pytest.raises(AssertionError, match="not close"):
            same(got, expected)
        got, expected = got, TRANSFORMS["forward over reverse"](loss_of(theirs), X, state(theirs)[0])[1]
    same(got, expected)


OPTIONS: list[dict[str, Any]] = [
    dict(mask="weights", residual=True, activation="silu", correction=1),
    dict(mask="bool", residual=True, activation=("leaky_relu", 0.1), correction=0),
    dict(mask="none", residual=False, activation="relu", correction=1),
]


@pytest.mark.parametrize("name", [n for n in TRANSFORMS if n != "hessian of x"])  # which makes x smaller
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_transform_gives_the_values_of_the_definition(name: str, options: dict[str, Any]) -> None:
    rest = dict(options)
    p = problem(X, "affine", rest.pop("residual"), rest.pop("mask"))

    def ours(x: Tensor, q: dict[str, Tensor]) -> Tensor:
        residual = None if p.residual is None else p.residual * x
        y = xt.batch_norm(x, None, None, q["weight"], q["bias"], True, residual=residual, mask=p.mask, **rest)
        return (y**3).sum()

    def theirs(x: Tensor, q: dict[str, Tensor]) -> Tensor:
        residual = None if p.residual is None else p.residual * x
        given = Problem(x, q["weight"], q["bias"], residual, p.mask)
        return (definition(given, **rest).y ** 3).sum()

    parameters = {"weight": p.weight, "bias": p.bias}
    got, expected = (TRANSFORMS[name](f, X, parameters) for f in (ours, theirs))
    same(got, expected)


# ------------------------------------------------------------------------------------------------ running statistics


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("mode", ["grad", "jvp"])
def test_running_statistics_that_are_arguments_move(mode: str, momentum: float | None) -> None:
    """And have no tangents of their own."""
    found = []
    for layer in layers(momentum=momentum):

        def loss(x: Tensor, layer: nn.Module = layer) -> Any:
            p, b = state(layer)
            b = {k: v + torch.zeros_like(x.reshape(-1)[0]).to(v.dtype) for k, v in b.items()}
            y = functional_call(layer, (p, b), (x,))
            moved = sum(v.sum() for k, v in b.items() if k.startswith("running"))
            return y.pow(3).sum() + moved, b

        before = int(layer.num_batches_tracked)
        found.append(
            grad(loss, has_aux=True)(X) if mode == "grad" else jvp(loss, (X,), (TANGENT,), has_aux=True)
        )
        assert layer.num_batches_tracked == before == int(found[-1][-1]["num_batches_tracked"]) - 1
    same(found[0], found[1])


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_an_ensemble_of_stacked_states(training: bool, momentum: float | None) -> None:
    """vmap over models: outputs, gradients and statistics are those of each model alone."""
    models = [layers(training, momentum=momentum)[0] for _ in range(3)]
    with torch.no_grad():
        for i, model in enumerate(models):
            for value in (*model.parameters(), *model.buffers()):
                value.add_(i)
    p, b = stack_module_state(models)
    p = {k: v.detach() for k, v in p.items()}

    def one(p: Any, b: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = functional_call(models[0], (p, b), (x,))
        return (y**3).sum(), y

    gradients, y = vmap(grad(one, has_aux=True), in_dims=(0, 0, None))(p, b, X)
    for i, model in enumerate(models):
        theirs = nn.BatchNorm2d(CHANNELS, momentum=momentum, dtype=torch.float64).train(training)
        theirs.load_state_dict(model.state_dict())
        expected = theirs(X)
        (expected**3).sum().backward()
        same(y[i], expected)
        same({k: v[i] for k, v in gradients.items()}, {k: v.grad for k, v in theirs.named_parameters()})
        same({k: v[i] for k, v in b.items()}, dict(theirs.named_buffers()))


@pytest.mark.parametrize(
    "run",
    [
        lambda layer: grad(lambda x: layer(x).pow(3).sum())(X),
        lambda layer: jvp(layer, (X,), (TANGENT,)),
        lambda layer: vmap(layer)(torch.stack((X, X))),
        lambda layer: hessian(lambda w: functional_call(layer, {"weight": w}, (X,)).sum())(layer.weight),
    ],
    ids=["grad", "jvp", "vmap", "hessian"],
)
@pytest.mark.parametrize("momentum", [0.1, None])
def test_running_statistics_that_are_no_arguments_are_refused(run: Any, momentum: float | None) -> None:
    """By torch's layer as well, which has counted the batch under vmap; and who raises has changed nothing."""
    ours, theirs = layers(momentum=momentum)
    before = {k: v.clone() for k, v in ours.state_dict().items()}
    with pytest.raises(RuntimeError, match=r"functional_call.*layer.eval\(\) or track_running_stats=False"):
        run(ours)
    torch.testing.assert_close(dict(ours.state_dict()), before, rtol=0, atol=0)
    with pytest.raises(RuntimeError):
        run(theirs)


def test_without_running_statistics_all_is_well() -> None:
    for options in ({"track_running_stats": False}, {"track_running_stats": False, "affine": False}):
        ours, theirs = layers(**options)
        same(vmap(ours)(torch.stack((X, X.exp()))), vmap(theirs)(torch.stack((X, X.exp()))))
        same(jvp(ours, (X,), (TANGENT,)), jvp(theirs, (X,), (TANGENT,)))


def test_a_policy_that_looks_at_values_is_refused() -> None:
    ours = xt.BatchNorm2d(CHANNELS, nonfinite="raise", dtype=torch.float64)
    with pytest.raises(
        ValueError, match=r'nonfinite="raise" has to look at values, which torch.func does not show'
    ):
        grad(lambda p, b: functional_call(ours, (p, b), (X,)).sum())(*state(ours))


def test_skipping_does_not_look_at_values() -> None:
    """Each model of an ensemble leaves out its own channels."""
    models = [xt.BatchNorm2d(CHANNELS, nonfinite="skip", dtype=torch.float64, momentum=1.0) for _ in range(2)]
    p, b = stack_module_state(models)
    x = torch.stack((X, X))
    x[1, 0, 2, 0, 0] = torch.nan
    vmap(lambda p, b, x: functional_call(models[0], (p, b), (x,)))(p, b, x)
    expected = torch.stack((X.mean((0, 2, 3)), X.mean((0, 2, 3))))
    expected[1, 2] = 0
    same(b["running_mean"], expected)
    assert b["skipped"].tolist() == [[0, 0, 0], [0, 0, 1]]
