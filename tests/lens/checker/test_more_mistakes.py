"""Mistakes of axes, samples, order, eps and groupings are named, each in a program with this mistake alone."""

from typing import Any

import numpy as np
import pytest
from lens.checker import wrong
from lens.checker.wrong import DIRECT, DX, MEAN, MU, PROGRAM, ROOT, RUNNING_VAR

from xhat.lens import check

CACHE = "(x, xhat, gamma, x - use_mean, use_var, sqrtvar, eps)"
OWN_ROOT = ("    rstd = 1 / sqrtvar", "    rstd = 1 / np.sqrt(var + eps)")

EDITS: dict[str, tuple[tuple[str, str], ...]] = {
    "axis forgotten in the forward": (
        (MU, "    mu = x.mean()"),
        ("    var = sq.sum(axis=0) / n", "    var = sq.mean()"),
        ("+ momentum * mu", "+ momentum * x.mean(0)"),
        ("+ momentum * var * n / (n - 1)", "+ momentum * x.var(0, ddof=1)"),
    ),
    "last sample left out in the forward": ((MU, "    mu = x[:-1].sum(axis=0) / n"),),
    "last sample counted twice in the forward": ((MU, "    mu = (x.sum(axis=0) + x[-1]) / n"),),
    "axis forgotten in a sum in dx": (("dxhat.sum(axis=0) * rstd", "dxhat.sum() * rstd"),),
    "last sample left out of a sum in dx": (("* xmu).sum(axis=0)", "* xmu)[:-1].sum(axis=0)"),),
    "last sample counted twice in a sum in dx": (
        ("dxhat.sum(axis=0) * rstd", "(dxhat.sum(axis=0) + dxhat[-1]) * rstd"),
    ),
    "dgamma with y instead of xhat": (
        (CACHE, "(y, xhat, gamma, x - use_mean, use_var, sqrtvar, eps)"),
        ("(dy * xhat).sum", "(dy * x).sum"),
    ),
    "axis forgotten in dgamma": (("(dy * xhat).sum(axis=0)", "(dy * xhat).sum() * np.ones(dy.shape[1])"),),
    "axis forgotten in dbeta": (("dbeta = dy.sum(axis=0)", "dbeta = dy.sum() * np.ones(dy.shape[1])"),),
    "last sample lost or counted twice in dgamma": (("(dy * xhat).sum", "(dy * xhat)[:-1].sum"),),
    "last sample lost or counted twice in dbeta": (
        ("dbeta = dy.sum(axis=0)", "dbeta = dy.sum(axis=0) + dy[-1]"),
    ),
    "standard deviation stored as the running variance": (
        (RUNNING_VAR, "(1 - momentum) * running_var + momentum * np.sqrt(var)"),
    ),
    "running variance used in the backward": (
        (CACHE, "(x, xhat, gamma, x - use_mean, running_var.copy(), sqrtvar, eps)"),
        OWN_ROOT,
    ),
    "the eps given is ignored": ((ROOT, "    sqrtvar = np.sqrt(use_var + 1e-5)"),),
    "another eps in the backward": ((OWN_ROOT[0], OWN_ROOT[1].replace("eps", "1e-3")),),
    "power of rstd wrong in all of dx": ((f"dx = {DX}", f"dx = ({DX}) * sqrtvar ** 2"),),
    "direct path dropped": (("dx = through_direct + ", "dx = "),),
    "xhat forgotten in the variance path": (("2 * xmu / n", "2 * sqrtvar / n"),),
    "gamma twice in dx": (("dxhat = gamma * dy", "dxhat = gamma**2 * dy"),),
    "gamma twice in the mean path": (("-(dxhat.sum", "-(gamma * dxhat.sum"),),
    "gamma twice in the variance path": (("(dxhat * xmu).sum", "(gamma * dxhat * xmu).sum"),),
    "number of channels for N in dx": (("* rstd) / n", "* rstd) / dy.shape[1]"),),
    "square root taken twice in the forward": ((ROOT, "    sqrtvar = np.sqrt(np.sqrt(use_var) + eps)"),),
    "beta scaled by gamma in the forward": (("scaled + beta", "scaled + gamma * beta"),),
}
# Other ways to make the same mistake.
AXIS = "axis forgotten in a sum in dx"
WAYS: tuple[tuple[str, tuple[str, str]], ...] = (
    (AXIS, (MEAN, "-dxhat.mean() * rstd")),
    (AXIS, (MEAN, "-gamma * rstd * dy.mean()")),
    (AXIS, (MEAN, "-(dxhat * rstd).sum() / n")),
    (AXIS, ("(dxhat * xmu).sum(axis=0)", "(dxhat * xmu).sum()")),
    (AXIS, ("(dxhat * xmu).sum(axis=0)", "(dxhat * xhat).mean() * n * sqrtvar")),
    ("xhat forgotten in the variance path", ("(dxhat * xmu).sum(axis=0)", "(dxhat * sqrtvar).sum(axis=0)")),
    ("number of channels for N in dx", ("2 * xmu / n", "2 * xmu / dy.shape[1]")),
    ("eps missing in the backward", (DIRECT, "dxhat / np.sqrt(var)\n")),
    ("power of rstd wrong in all of dx", (f"dx = {DX}", f"dx = ({DX}) * np.sqrt(sqrtvar)")),
    ("square root taken twice in the forward", (ROOT, "    sqrtvar = np.sqrt(np.sqrt(use_var + eps))")),
)


def edited(text: str, edits: tuple[tuple[str, str], ...]) -> Any:
    for old, new in edits:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return wrong.functions(text)


@pytest.mark.parametrize("name", EDITS)
def test_a_mistake_is_named_in_a_program(name: str) -> None:
    verdict = check(*edited(PROGRAM, EDITS[name]), like="torch")
    assert verdict.status == 1 and name in verdict.names and len(verdict.mistakes) == 1, str(verdict)


@pytest.mark.parametrize(("name", "edit"), WAYS)
def test_another_way_to_make_a_mistake_has_the_same_name(name: str, edit: tuple[str, str]) -> None:
    verdict = check(*edited(PROGRAM, (edit,)), like="torch")
    assert verdict.names == {name}, str(verdict)


@pytest.mark.parametrize("own", [(2, 3), (1, 2, 3)])
def test_statistics_of_each_sample_are_named(own: tuple[int, ...]) -> None:
    def forward(x: Any, gamma: Any, beta: Any, eps: float) -> Any:
        mean, var = x.mean(own, keepdims=True), x.var(own, keepdims=True)
        return gamma.reshape(1, -1, 1, 1) * (x - mean) / np.sqrt(var + eps) + beta.reshape(1, -1, 1, 1)

    assert check(forward).names == {"statistics of each sample in the forward"}


@pytest.mark.parametrize(
    ("axes", "name"),
    [
        ((0, 1, 2), "channel axis transposed in the forward"),
        ((2, 3), "statistics of each sample in the forward"),
        ((0, 1, 2, 3), "axis forgotten in the forward"),
    ],
)
def test_wrong_axes_are_named_where_eps_is_in_the_code(axes: tuple[int, ...], name: str) -> None:
    def forward(x: Any, gamma: Any, beta: Any) -> Any:
        mean, var = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
        return gamma.reshape(1, -1, 1, 1) * (x - mean) / np.sqrt(var + 1e-3) + beta.reshape(1, -1, 1, 1)

    verdict = check(forward)
    assert verdict.names == {name}, str(verdict)
    assert verdict.conventions["eps"] == "0.001 in the code, inside the root"


def rows_of(x: Any, transposed: bool) -> Any:
    return (np.moveaxis(x, 1, -1) if transposed else x).reshape(-1, x.shape[1])


def images_of(rows: Any, shape: tuple[int, ...], transposed: bool) -> Any:
    n, c, h, w = shape
    return np.moveaxis(rows.reshape(n, h, w, c), -1, 1) if transposed else rows.reshape(shape)


@pytest.mark.parametrize(("there", "back"), [(False, False), (False, True), (True, False)])
def test_a_reshape_without_a_transpose_is_named(there: bool, back: bool) -> None:
    def forward(x: Any, gamma: Any, beta: Any, eps: float) -> Any:
        rows = rows_of(x, there)
        rstd = 1 / np.sqrt(rows.var(0) + eps)
        xhat = (rows - rows.mean(0)) * rstd
        return images_of(gamma * xhat + beta, x.shape, there), (x, gamma, eps)

    def backward(dout: Any, cache: Any) -> Any:
        x, gamma, eps = cache
        rows, dy = rows_of(x, back), rows_of(dout, back)
        rstd, m = 1 / np.sqrt(rows.var(0) + eps), len(rows)
        xhat = (rows - rows.mean(0)) * rstd
        dgamma, dbeta = (dy * xhat).sum(0), dy.sum(0)
        return images_of(gamma * rstd * (dy - dbeta / m - xhat * dgamma / m), x.shape, back), dgamma, dbeta

    found = {
        (False, False): {"reshape without transpose in the forward"},
        (False, True): {"reshape without transpose in the forward"},
        (True, False): {"reshape without transpose in the backward"},
    }[there, back]
    verdict = check(forward, backward)
    assert found <= verdict.names, str(verdict)


@pytest.mark.parametrize(
    ("wrong_output", "name"),
    [
        ("dx", "reshape without transpose in the backward"),
        ("dgamma of rows", "spatial axes left out of a sum in dgamma"),
        ("dbeta of columns", "spatial axes left out of a sum in dbeta"),
    ],
)
def test_gradients_of_images_with_axes_left_out_or_exchanged_are_named(wrong_output: str, name: str) -> None:
    def forward(x: Any, gamma: Any, beta: Any, eps: float) -> Any:
        rows = rows_of(x, True)
        rstd = 1 / np.sqrt(rows.var(0) + eps)
        xhat = (rows - rows.mean(0)) * rstd
        return images_of(gamma * xhat + beta, x.shape, True), (xhat, gamma, rstd)

    def backward(dout: Any, cache: Any) -> Any:
        xhat, gamma, rstd = cache
        dy = rows_of(dout, True)
        dgamma, dbeta = (dy * xhat).sum(0), dy.sum(0)
        dx = gamma * rstd * (dy - dbeta / len(dy) - xhat * dgamma / len(dy))
        if wrong_output == "dgamma of rows":
            dgamma = (dout * images_of(xhat, dout.shape, True)).sum((0, 2))
        if wrong_output == "dbeta of columns":
            dbeta = dout.sum((0, 3))
        return images_of(dx, dout.shape, wrong_output != "dx"), dgamma, dbeta

    assert check(forward, backward).names == {name}


def test_exchanged_gradients_of_a_function_of_autograd_are_named() -> None:
    torch = pytest.importorskip("torch")

    class Exchanged(torch.autograd.Function):  # type: ignore[misc, name-defined]
        @staticmethod
        def forward(ctx: Any, x: Any, gamma: Any, beta: Any, eps: float = 1e-5) -> Any:
            rstd = torch.rsqrt(x.var(0, unbiased=False) + eps)
            xhat = (x - x.mean(0)) * rstd
            ctx.save_for_backward(xhat, gamma, rstd)
            return gamma * xhat + beta

        @staticmethod
        def backward(ctx: Any, dy: Any) -> Any:
            xhat, gamma, rstd = ctx.saved_tensors
            dx = gamma * rstd * (dy - dy.mean(0) - xhat * (dy * xhat).mean(0))
            return dx, dy.sum(0), (dy * xhat).sum(0), None

    assert check(Exchanged).names == {"dgamma and dbeta exchanged"}


def test_independent_mistakes_do_not_hide_an_eps_in_the_code() -> None:
    """eps outside the root, another eps in the backward, and N - 1 in one path: each is named."""

    def forward(x: Any, gamma: Any, beta: Any) -> Any:
        std = np.sqrt(x.var(0))
        return gamma * (x - x.mean(0)) / (std + 1e-6) + beta, (x, gamma)

    def backward(dout: Any, cache: Any) -> Any:
        x, gamma = cache
        n, centred = len(x), x - x.mean(0)
        rstd = (x.var(0) + 1e-5) ** -0.5
        g = dout * gamma
        dvar = -0.5 * (g * centred).sum(0) * rstd**3
        return g * rstd + dvar * 2 * centred / (n - 1) - (g * rstd).sum(0) / n

    verdict = check(forward, backward)
    assert verdict.names >= {
        "eps outside the root in the forward",
        "N - 1 in one place and N in another: variance path",
    }, str(verdict)
    assert verdict.conventions["eps"] == "1e-06 in the code, outside the root"
