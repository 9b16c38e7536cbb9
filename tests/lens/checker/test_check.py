"""The checker on usual implementations: right ones pass, the mistakes of wrong ones are named.

The specimens are complete files; smaller cases are written here.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lens.checker.specimens import closed

import xhat
from xhat.lens import check, check_file

SPECIMENS = Path(__file__).parent / "specimens"
RIGHT = ("closed", "nine_nodes", "closed_form", "images", "layer")
WITH_TORCH = ("bessel", "autodiff_torch", "autograd_function")


forward, backward = closed.forward, closed.backward


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_specimen_passes(name: str) -> None:
    (verdict,) = check_file(SPECIMENS / f"{name}.py")
    assert verdict, str(verdict)
    assert {"y", "dx", "dgamma", "dbeta"} <= {row.output for row in verdict.rows}


@pytest.mark.parametrize("name", WITH_TORCH)
def test_a_right_specimen_in_pytorch_passes(name: str) -> None:
    pytest.importorskip("torch")
    (verdict,) = check_file(SPECIMENS / f"{name}.py")
    assert verdict, str(verdict)
    assert {"y", "dx", "dgamma", "dbeta"} <= {row.output for row in verdict.rows}


def test_a_right_specimen_in_jax_passes_in_its_precision() -> None:
    pytest.importorskip("jax")
    (verdict,) = check_file(SPECIMENS / "autodiff_jax.py")
    assert verdict, str(verdict)
    assert verdict.conventions["arrays"] == "jax, float32"
    assert 1e-9 < max(row.error or 0.0 for row in verdict.rows) < 1e-5


def test_the_source_derivation_mixes_its_conventions() -> None:
    (verdict,) = check_file(SPECIMENS / "the_source.py")
    assert verdict.status == 1
    (finding,) = verdict.mistakes
    assert finding.names == ("N - 1 in one place and N in another: variance path",)
    assert finding.outputs == ("dx",) and finding.line == "variance-by-input"
    assert [row.right for row in verdict.rows] == [True, False, True, True]


def test_detached_statistics_have_two_names() -> None:
    pytest.importorskip("torch")
    (finding,) = check_file(SPECIMENS / "detached.py")[0].mistakes
    assert set(finding.names) == {
        "mean and variance paths both dropped",
        "statistics detached from the graph",
    }


def test_two_mistakes_in_one_output_are_both_on_its_row() -> None:
    def wrong(dout: Any, cache: Any) -> Any:
        xhat, _, rstd = cache
        return rstd * (dout - xhat * (dout * xhat).mean(0)), (dout * xhat).sum(0), dout.sum(0)

    verdict = check(forward, wrong)
    assert verdict.rows[1].why == "dy used for dxhat or gamma forgotten in dx and mean path dropped"
    assert [len(finding.names) for finding in verdict.mistakes] == [2, 1]
    assert "read: derivation, 'Path 3: Gradient with respect to Mean μ', display path-3-product" in str(
        verdict
    )


def test_the_library_itself_is_right() -> None:
    assert check(xhat.batch_norm, xhat.batch_norm_backward)
    assert check(xhat.batch_norm, xhat.batch_norm_backward, dtype="float32")
    assert check(xhat.batch_norm, xhat.batch_norm_backward, layout="NCHW")


def test_a_module_of_pytorch_is_checked_as_a_layer() -> None:
    torch = pytest.importorskip("torch")
    verdict = check(torch.nn.BatchNorm1d, like="torch", layout="NC")
    assert verdict, str(verdict)
    assert {"running_mean", "running_var"} <= {row.output for row in verdict.rows}
    assert check(torch.nn.BatchNorm1d, like="keras").names == {
        "momentum reversed",
        "running variance with the other correction",
    }


def test_conventions_are_detected_before_judging() -> None:
    def bessel(x: Any, gamma: Any, beta: Any, eps: float) -> Any:
        rstd = 1 / np.sqrt(x.var(0, ddof=1) + eps)
        return gamma * (x - x.mean(0)) * rstd + beta, ((x - x.mean(0)) * rstd, gamma, rstd)

    def its_backward(dout: Any, cache: Any) -> Any:
        xhat, gamma, rstd = cache
        n = len(dout)
        dgamma, dbeta = (dout * xhat).sum(0), dout.sum(0)
        return gamma * rstd * (dout - dbeta / n - xhat * dgamma / (n - 1)), dgamma, dbeta

    verdict = check(bessel, its_backward)
    assert verdict and verdict.conventions["variance"] == "N - 1"
    assert check(bessel, its_backward, like="torch").names == {"variance with the other correction"}
    mixed = check(bessel, backward)
    assert mixed.names == {"N - 1 in one place and N in another: variance path"}
    assert mixed.conventions["variance"] == "N - 1"


def test_a_backward_is_judged_by_its_own_forward() -> None:
    def outside(x: Any, gamma: Any, beta: Any, eps: float) -> Any:
        std = x.std(0)
        return gamma * (x - x.mean(0)) / (std + eps) + beta, (x, gamma, std, eps)

    def exact(dout: Any, cache: Any) -> Any:
        x, gamma, std, eps = cache
        n, xmu = len(dout), x - x.mean(0)
        dxhat = dout * gamma
        dstd = -(dxhat * xmu).sum(0) / (std + eps) ** 2
        dx = dxhat / (std + eps) - (dxhat / (std + eps)).mean(0) + dstd * xmu / (n * std)
        return dx, (dout * xmu / (std + eps)).sum(0), dout.sum(0)

    verdict = check(outside, exact)
    assert verdict.names == {"eps outside the root in the forward"}
    assert {row.output: row.right for row in verdict.rows} == {
        "y": False,
        "dx": True,
        "dgamma": True,
        "dbeta": True,
    }
    assert verdict.rows[1].why == "the exact derivative of this forward"
    textbook = check(
        lambda x, gamma, beta, eps: (
            y := outside(x, gamma, beta, eps)[0],
            ((y - beta) / gamma, gamma, 1 / (x.std(0) + eps)),
        ),
        backward,
    )
    assert textbook.names == {"eps outside the root in the forward"}
    assert textbook.rows[1].why == "right once the forward is mended"


def test_a_backward_alone_is_judged_on_exact_statistics() -> None:
    def closed(dy: Any, xhat: Any, gamma: Any, rstd: Any) -> Any:
        return gamma * rstd * (dy - dy.mean(0) - xhat * (dy * xhat).mean(0)), (dy * xhat).sum(0), dy.sum(0)

    def no_mean(dy: Any, x: Any, weight: Any, eps: float) -> Any:
        xhat = (x - x.mean(0)) / np.sqrt(x.var(0) + eps)
        dx = weight / np.sqrt(x.var(0) + eps) * (dy - xhat * (dy * xhat).mean(0))
        return {"dweight": (dy * xhat).sum(0), "dbias": dy.sum(0), "dx": dx}

    assert check(backward=closed)
    assert check(backward=no_mean).names == {"mean path dropped"}


def test_a_hard_coded_eps_is_found() -> None:
    verdict = check(lambda x, gamma, beta: forward(x, gamma, beta, 1e-3), backward)
    assert verdict and verdict.conventions["eps"] == "0.001 in the code, inside the root"
    assert check(lambda x, gamma, beta: forward(x, gamma, beta, 0.0), backward).names == {
        "eps missing in the forward"
    }
    odd = check(lambda x, gamma, beta: forward(x, gamma, beta, 3e-4), backward)
    assert odd and odd.conventions["eps"] == "0.0003 in the code, inside the root"
    assert check(lambda x, gamma, beta: forward(x, gamma, beta, 3e-4), backward, eps=3e-4)
    assert check(lambda x, gamma, beta: forward(x, gamma, beta, 3e-4), backward, eps=1e-3).status == 1


def test_returned_statistics_are_judged_too() -> None:
    def returning(spread: Any, shift: float = 0.0) -> Any:
        def run(x: Any, gamma: Any, beta: Any, eps: float) -> Any:
            return {"y": forward(x, gamma, beta, eps)[0], "mean": x.mean(0) + shift, "var": spread(x, eps)}

        return run

    why = {row.output: row.why for row in check(returning(lambda x, eps: 1 / np.sqrt(x.var(0) + eps))).rows}
    assert why["returned mean"] == "" and why["returned var"] == "it is rstd"
    assert check(returning(lambda x, eps: x.var(0, ddof=1)))
    assert check(returning(lambda x, eps: x.max(0))).unnamed == (
        "the returned var is no statistic of the batch",
    )
    assert check(returning(lambda x, eps: x.var(0), 0.1)).unnamed == (
        "the returned mean is no statistic of the batch",
    )


def test_an_error_without_a_name_is_described() -> None:
    def odd(dout: Any, cache: Any) -> Any:
        xhat, gamma, rstd = cache
        dx, dgamma, dbeta = backward(dout, cache)
        return dx + 0.3 * gamma * rstd * xhat * dgamma / len(dout), dgamma, dbeta

    verdict = check(forward, odd)
    assert not verdict.mistakes
    (text,) = verdict.unnamed
    assert text.startswith("dx: can't name the mistake; it is off in every channel (of ")
    assert text.endswith("the error is -0.3 times the variance path")

    def one_channel(dout: Any, cache: Any) -> Any:
        dx, dgamma, dbeta = backward(dout, cache)
        dgamma[1] *= 1.25
        return dx, dgamma, dbeta

    (text,) = check(forward, one_channel).unnamed
    assert text.startswith("dgamma: can't name the mistake; it is off in channel [1] (of ")


@pytest.mark.parametrize("seed", range(12))
def test_random_errors_are_never_named(seed: int) -> None:
    a, b, c, d = np.random.default_rng(seed).uniform(-3, 3, 4)

    def bad(dout: Any, cache: Any) -> Any:
        xhat, gamma, rstd = cache
        dx, dgamma, dbeta = backward(dout, cache)
        scale, n = gamma * rstd, len(dout)
        ways = [
            (scale * (a * dout - b * dbeta / n - c * xhat * dgamma / n), dgamma, dbeta),
            (dx + d * xhat**2, dgamma, dbeta),
            (dx, a * dgamma + b * dbeta, dbeta),
            (scale * (dout - dbeta / (n + d) - xhat * dgamma / n), dgamma, dbeta + d),
        ]
        return ways[seed % 4]

    verdict = check(forward, bad)
    assert verdict.status == 1 and verdict.unnamed and not verdict.mistakes


def test_a_forward_without_a_name_still_has_a_right_backward() -> None:
    def odd(x: Any, gamma: Any, beta: Any, eps: float) -> Any:
        return gamma * x + beta + 0.1 * x**2, (x, gamma)

    def its_own(dout: Any, cache: Any) -> Any:
        x, gamma = cache
        return dout * (gamma + 0.2 * x), (dout * x).sum(0), dout.mean(0)

    verdict = check(odd, its_own)
    assert verdict.names == {"dbeta scaled by 1/n"} and verdict.unnamed[0].startswith("y: can't name")
    assert {row.output: row.right for row in verdict.rows} == {
        "y": False,
        "dx": True,
        "dgamma": True,
        "dbeta": False,
    }
    assert verdict.rows[1].why == "the derivative of this forward, by differences"


def test_a_transposed_axis_is_named_if_code_runs_on_square_batches_only() -> None:
    def crossed(x: Any, gamma: Any, beta: Any, eps: float) -> Any:
        return gamma * (x - x.mean(1)) / np.sqrt(x.var(1) + eps) + beta

    assert check(crossed).names == {"channel axis transposed in the forward"}

    def rows(x: Any, gamma: Any, beta: Any, eps: float) -> Any:
        return gamma * (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + eps) + beta

    assert check(rows, layout="NC").names == {"channel axis transposed in the forward"}
    verdict = check(rows)
    assert verdict and verdict.conventions["channel axis"] == "0 (CN)"
    assert verdict.headline == "rows, with features in rows, (C, N): right (y)."
    # A backward that sums over the rows shows that the channels are in the columns.
    assert check(
        lambda x, gamma, beta, eps: (rows(x, gamma, beta, eps), (x, eps)),
        lambda dy, cache: {"dbeta": dy.sum(0), "dx": backward(dy, forward(cache[0], 1, 0, cache[1])[1])[0]},
    ).names >= {"channel axis transposed in the forward"}


def test_momentum_is_judged_by_its_default_in_the_code() -> None:
    def layer(sense: int, default: float) -> Any:
        def run(
            x: Any,
            gamma: Any,
            beta: Any,
            running_mean: Any,
            running_var: Any,
            eps: float,
            momentum: float = default,
        ) -> Any:
            k = momentum if sense else 1 - momentum
            running_mean += k * (x.mean(0) - running_mean)
            running_var += k * (x.var(0) - running_var)
            return forward(x, gamma, beta, eps)[0]

        return run

    assert check(layer(1, 0.1)).conventions["momentum"] == "weight of the batch"
    assert check(layer(0, 0.9)).conventions["momentum"] == "weight of the past"
    assert check(layer(0, 0.1)).names == check(layer(1, 0.9)).names == {"momentum reversed"}

    def mixed(x: Any, gamma: Any, beta: Any, running_var: Any, eps: float, momentum: float = 0.1) -> Any:
        running_var += momentum * (x.var(0) - running_var)
        return gamma * (x - x.mean(0)) / np.sqrt(x.var(0, ddof=1) + eps) + beta

    assert check(mixed).names == {"running variance with the other correction"}
