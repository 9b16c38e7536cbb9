"""check_data: what kernels give, judged from arrays; the kernels are in `kernels`, in float32."""

from typing import Any

import numpy as np
import pytest
from lens.checker.kernels import (
    dumped,
    first,
    in_order,
    inputs,
    kernel,
    one_pass,
    pairwise,
    two_passes,
    welford,
)

from xhat.lens import check_data

CAREFUL = {
    "a plain loop": (two_passes(in_order), in_order, False),
    "pairwise sums, scale and shift": (two_passes(pairwise), pairwise, True),
    "Welford": (welford, in_order, False),
}
RESULTS = ("y", "dx", "dgamma", "dbeta", "mean", "var", "rstd")


@pytest.mark.parametrize("style", CAREFUL)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_careful_kernels_are_right(style: str, dtype: str) -> None:
    stats, total, folded = CAREFUL[style]
    for m in (1, 2, 7, 300, 4097):
        for distance in (0.0, 30.0, 1e4) if dtype == "float32" else (0.0, 3.0):
            case = inputs(m, distance, dtype)
            verdict = check_data(dumped(case, kernel(case, stats, total, folded=folded), dtype))
            assert verdict, f"{m} {distance} {verdict}"
            assert [row.output for row in verdict.rows] == list(RESULTS)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("output", RESULTS)
def test_an_error_of_a_few_times_the_rounding_is_wrong(output: str, dtype: str) -> None:
    case = inputs(40, 1.0, dtype)
    results = kernel(case, two_passes(pairwise), pairwise)
    digits = {"y": 8, "dx": 8}.get(output, 24) if dtype == "bfloat16" else 24
    results[output] = results[output] * (1 + 100 * 2.0**-digits * (1 if digits == 8 else 20))
    verdict = check_data(dumped(case, results, dtype))
    assert [row.output for row in verdict.rows if not row.right] == [output]


def test_a_one_pass_variance_is_named_where_the_mean_is_far() -> None:
    near, far = inputs(300, 1.0), inputs(300, 1e4)
    assert check_data(dumped(near, kernel(near, one_pass, pairwise)))
    verdict = check_data(dumped(far, kernel(far, one_pass, pairwise)))
    assert verdict.names == {"one-pass variance cancelling"} and "dbeta" not in verdict.mistakes[0].outputs


def test_mistakes_are_named_by_the_catalogue() -> None:
    case = inputs(300)
    right = kernel(case, two_passes(pairwise), pairwise)
    dropped = kernel(case, two_passes(pairwise), pairwise, mean_path=False)
    verdict = check_data(dumped(case, dropped))
    assert verdict.names == {"mean path dropped"} and verdict.mistakes[0].outputs == ("dx",)
    verdict = check_data(dumped(case, right | {"y": right["y"] - np.asarray(case["beta"])[:, None]}))
    assert verdict.names == {"beta forgotten in the forward"}


def test_sums_of_a_part_of_the_values_are_described() -> None:
    case = inputs(1100, channels=33)
    block = first(1024)

    def stats(x: Any) -> Any:
        mu = block(x) / np.float32(x.shape[1])
        return mu, block((x - mu[:, None]) ** 2) / np.float32(x.shape[1])

    verdict = check_data(dumped(case, kernel(case, stats, block)))
    assert "dbeta: the sum of the first 1,024 of 1,100 values of each channel" in verdict.unnamed
    assert any(text.startswith("y: its mean is made of a part of the values") for text in verdict.unnamed)
    right = kernel(case, two_passes(pairwise), pairwise)
    twice = right["dbeta"] + np.asarray(case["dy"])[:, 6].astype(np.float32)
    verdict = check_data(dumped(case, right | {"dbeta": twice}))
    assert verdict.unnamed == ("dbeta: value 7 of 1,100 of each channel is summed twice",)


def test_values_that_were_never_written_are_counted() -> None:
    case = inputs(40, channels=33)
    results = kernel(case, two_passes(pairwise), pairwise)
    results["dx"][32] = np.nan
    (text,) = check_data(dumped(case, results)).unnamed
    assert text.startswith("dx: 40 of 1,320 values are not finite, in channel 32, the first at (32, 0)")


def test_cases_are_judged_one_by_one_and_those_without_results_are_not() -> None:
    dump: dict[str, Any] = {}
    for m, ok in ((40, True), (50, True), (60, False)):
        case = inputs(m)
        results = kernel(case, two_passes(pairwise), pairwise, mean_path=ok)
        dump |= {f"case{m}/{name}": value for name, value in dumped(case, results).items()}
    verdict = check_data(dump)
    assert verdict.status == 1 and verdict.mistakes[0].outputs == ("dx of case60",)
    assert [row.right for row in verdict.rows if row.output in ("y", "dx", "dx of case60")] == [
        True,
        True,
        False,
    ]
    kept = [name for name in dump if not name.startswith("case60") or name.endswith(("/x", "/layout"))]
    left = {name: dump[name] for name in kept}
    verdict = check_data(left)
    assert verdict.status == 2 and "all of case60 not judged: the dump has no result" in verdict.headline


def test_running_statistics_and_evaluation_are_judged() -> None:
    case = inputs(40)
    results = kernel(case, two_passes(pairwise), pairwise)
    mu, var = case["x"].mean(axis=1), case["x"].var(axis=1)
    before = {"running_mean": np.full(5, 0.25), "running_var": np.full(5, 2.0)}
    after = {"running_mean_after": 0.9 * 0.25 + 0.1 * mu, "running_var_after": 0.9 * 2 + 0.1 * var * 40 / 39}
    dump = dumped(case, results | before | after | {"momentum": 0.1})
    verdict = check_data(dump)
    assert verdict and verdict.conventions["momentum"] == "weight of the batch"
    assert not check_data(dump | {"running_var_after": np.float32(0.9 * 2 + 0.2 * var)})
    xhat = (case["x"] - 0.25) / np.sqrt(2.0 + 1e-5)
    y = case["gamma"][:, None] * xhat + case["beta"][:, None]
    evaluated = {name: dump[name] for name in ("x", "gamma", "beta", "running_mean", "running_var", "eps")}
    evaluated |= {"layout": "CN", "training": False}
    assert check_data(evaluated | {"y": y.astype(np.float32)})
    assert not check_data(evaluated | {"y": results["y"]})


def test_the_channel_axis_and_the_names_are_found() -> None:
    rng = np.random.default_rng(0)
    x, dy = rng.standard_normal((2, 4, 5, 6, 4))
    mu, var = x.mean(axis=(0, 1, 2)), x.var(axis=(0, 1, 2))
    xhat = (x - mu) / np.sqrt(var + 1e-3)
    dump = {
        "input": x,
        "weight": np.arange(1.0, 5),
        "bias": np.ones(4),
        "output": np.arange(1.0, 5) * xhat + 1,
    }
    dump |= {
        "grad_output": dy,
        "bias.grad": dy.sum(axis=(0, 1, 2)),
        "weight_grad": (dy * xhat).sum(axis=(0, 1, 2)),
    }
    verdict = check_data(dump | {"foo": 1.0})
    assert verdict and verdict.conventions["channel axis"] == "3 (NHWC)"
    assert verdict.conventions["eps"] == "0.001 (not in the dump)"
    assert "Not used, since no quantity has this name: foo." in verdict.notes


X = np.arange(12.0).reshape(4, 3)


def test_dx_without_dy_is_not_judged() -> None:
    verdict = check_data({"x": X, "y": (X - X.mean(0)) / np.sqrt(X.var(0) + 1e-5), "dx": X, "eps": 1e-5})
    assert verdict.status == 2 and verdict.headline == (
        "the dump: y right; dx not judged: dy is not in the dump."
    )


def test_a_factor_is_no_rounding() -> None:
    case = inputs(300)
    results = kernel(case, two_passes(pairwise), pairwise)
    (text,) = check_data(dumped(case, results | {"dx": results["dx"] * np.float32(1.01)})).unnamed
    assert text.endswith("it is 1.01 times the exact one")
    halves = {name: results[name].astype(np.float16).astype(np.float32) for name in ("y", "dx")}
    (text,) = check_data(dumped(case, results | halves), layout="CN").unnamed
    assert text == "y, dx: right to the digits of float16 only; compute in float32, and round once"
