"""check_data: what kernels give, judged from arrays; the kernels are in `kernels`, in float32."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lens.checker.kernels import first, in_order, kernel, one_pass, pairwise, two_passes, welford

from xhat.errors import ArgumentError, DtypeError, ShapeError
from xhat.lens import check_data, probes
from xhat.lens.checker.dumps import as_float64, read_dumps
from xhat.lens.checker.probes import rounded

CAREFUL = {
    "a plain loop": (two_passes(in_order), in_order, False),
    "pairwise sums, scale and shift": (two_passes(pairwise), pairwise, True),
    "Welford": (welford, in_order, False),
}
RESULTS = ("y", "dx", "dgamma", "dbeta", "mean", "var", "rstd")


def saved(values: Any, dtype: str) -> Any:
    """Rounded, as a dump of this dtype has it; bfloat16 as its bits."""
    values = rounded(np.asarray(values, np.float64), dtype)
    if dtype == "bfloat16":
        return (values.astype(np.float32).view(np.uint32) >> np.uint32(16)).astype(np.uint16)
    return values.astype(dtype)


def inputs(m: int, distance: float = 1.0, dtype: str = "float32", channels: int = 5) -> dict[str, Any]:
    """x, dy, gamma, beta and eps of a case as numbers; x is (C, m), `distance` deviations from 0."""
    rng = np.random.default_rng(m)
    x = distance + rng.standard_normal((channels, m)) * rng.uniform(0.5, 2, (channels, 1))
    dy = rng.standard_normal((channels, m)) + rng.uniform(-1, 1, (channels, 1))
    gamma, beta = rng.uniform(0.5, 2, channels), rng.uniform(-2, 2, channels)
    case = {"x": rounded(x, dtype), "dy": rounded(dy, dtype), "eps": 1e-5}
    return case | {"gamma": rounded(gamma, "float32"), "beta": rounded(beta, "float32")}


def dumped(case: dict[str, Any], results: dict[str, Any], dtype: str = "float32") -> dict[str, Any]:
    """The dump of a case with results, of the layout CN."""
    arrays = {
        name: saved(value, dtype)
        for name, value in (case | results).items()
        if name in ("x", "dy", "y", "dx")
    }
    rest = {
        name: np.asarray(value, np.float32) for name, value in (case | results).items() if name not in arrays
    }
    return rest | arrays | {"eps": case["eps"], "layout": "CN"}


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
    case = inputs(1025, channels=33)
    block = first(1024)

    def stats(x: Any) -> Any:
        mu = block(x) / np.float32(x.shape[1])
        return mu, block((x - mu[:, None]) ** 2) / np.float32(x.shape[1])

    verdict = check_data(dumped(case, kernel(case, stats, block)))
    assert "dbeta: the sum of the first 1,024 of 1,025 values of each channel" in verdict.unnamed
    assert any(text.startswith("y: its mean is made of a part of the values") for text in verdict.unnamed)
    right = kernel(case, two_passes(pairwise), pairwise)
    twice = right["dbeta"] + np.asarray(case["dy"])[:, 6].astype(np.float32)
    verdict = check_data(dumped(case, right | {"dbeta": twice}))
    assert verdict.unnamed == ("dbeta: value 7 of 1,025 of each channel is summed twice",)


def test_values_that_were_never_written_are_counted() -> None:
    case = inputs(40, channels=33)
    results = kernel(case, two_passes(pairwise), pairwise)
    results["dx"][32] = np.nan
    (text,) = check_data(dumped(case, results)).unnamed
    assert text.startswith("dx: 40 of 1,320 values are not finite, in channel 32, the first at (32, 0)")


def test_bfloat16_is_read_as_bits_as_v2_and_widened() -> None:
    case = inputs(40, 1.0, "bfloat16")
    bits = dumped(case, kernel(case, two_passes(pairwise), pairwise), "bfloat16")
    arrays = {name: value for name, value in bits.items() if name not in ("layout", "eps")}
    as_v2 = {name: v.view("V2") if v.dtype == np.uint16 else v for name, v in arrays.items()}
    widened = {name: as_float64(name, value)[0].astype(np.float32) for name, value in as_v2.items()}
    for dump in (bits, as_v2, widened):
        verdict = check_data(dump, layout="CN", eps=1e-5)
        assert verdict and "bfloat16" in verdict.conventions["x"]
    strict = check_data(widened | {"y": widened["y"] * (1 + 2.0**-20)}, layout="CN", eps=1e-5)
    assert not strict  # this y is no bfloat16, and so has the digits of float32


def test_dumps_are_files_and_folders_and_later_ones_add(tmp_path: Path) -> None:
    case = inputs(40)
    dump = dumped(case, kernel(case, two_passes(pairwise), pairwise))
    given = {name: dump[name] for name in ("x", "dy", "gamma", "beta", "eps", "layout")}
    np.savez(tmp_path / "inputs.npz", **given)
    folder = tmp_path / "results" / "nested"
    folder.mkdir(parents=True)
    for name in ("y", "dx"):
        np.save(tmp_path / "results" / f"{name}.npy", dump[name])
    verdict = check_data(read_dumps([tmp_path / "inputs.npz", tmp_path / "results"]))
    assert verdict and verdict.not_judged == ("dgamma, dbeta: not in the dump.",)
    save_file = pytest.importorskip("safetensors.numpy").save_file
    save_file({n: np.atleast_1d(v) for n, v in dump.items() if n != "layout"}, tmp_path / "all.safetensors")
    assert check_data(tmp_path / "all.safetensors", layout="CN")


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
BAD: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no x": (
        {"y": X},
        ArgumentError,
        "check: the dump has no x (it has y), expected the input of the kernel as x.",
    ),
    "no result": (
        {"x": X, "gamma": X[0]},
        ArgumentError,
        "check: the dump has no result (it has x, gamma), expected y, or dy and dx, or mean and var.",
    ),
    "nothing": ({}, ArgumentError, "check: the dump is empty, expected x and y at least."),
    "shape": ({"x": X, "y": X.T}, ShapeError, "check: y has shape (3, 4), expected (4, 3), the shape of x."),
    "one axis": (
        {"x": X[0], "y": X[0]},
        ShapeError,
        "check: x has shape (3,), expected a batch and channels, such as (N, C).",
    ),
    "channels": (
        {"x": X, "y": X, "gamma": np.ones(5)},
        ShapeError,
        "check: the parameters and statistics have 5 values, expected the length of any axis of x, of shape (4, 3).",
    ),
    "two lengths": (
        {"x": X, "y": X, "gamma": np.ones(3), "beta": np.ones(4)},
        ShapeError,
        "check: beta has 4 values and gamma 3, expected one a channel.",
    ),
    "NaN": (
        {"x": np.where(X == 4, np.nan, X), "y": X},
        ArgumentError,
        "check: x has 1 values that are not finite, the first at (1, 1); expected finite inputs.",
    ),
    "twice": (
        {"x": X, "y": X, "gamma": X[0], "weight": X[0]},
        ArgumentError,
        "check: weight is one of two arrays for gamma, expected one; rename or remove the other.",
    ),
    "dtype": (
        {"x": X.astype(complex), "y": X},
        DtypeError,
        "check: x has dtype complex128, expected float64, float32, float16, or bfloat16 as |V2 or uint16.",
    ),
    "eps": (
        {"x": X, "y": X, "eps": -1.0},
        ArgumentError,
        "check: eps is -1.0, expected a finite number of at least 0.",
    ),
    "layout": (
        {"x": X, "y": X, "layout": "NCHW"},
        ArgumentError,
        "check: layout is 'NCHW' and x has shape (4, 3), expected a letter an axis, one C.",
    ),
    "evaluation": (
        {"x": X, "y": X, "training": 0},
        ArgumentError,
        "check: the dump is of evaluation and has no running_mean, expected both running statistics.",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_dump_has_one_sentence(name: str) -> None:
    dump, kind, sentence = BAD[name]
    with pytest.raises(kind) as raised:
        check_data(dump)
    assert str(raised.value) == sentence


def test_a_file_that_is_no_dump_has_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_bytes(b"no archive")
    (tmp_path / "code.npy").write_bytes(b"")
    for path in (tmp_path / "none.npz", tmp_path / "bad.npz", tmp_path / "code.npy"):
        with pytest.raises(
            ArgumentError, match=r"^check: .* expected a \.npz or \.safetensors file, or a folder of"
        ):
            check_data(path)


def test_dx_without_dy_is_not_judged() -> None:
    verdict = check_data({"x": X, "y": (X - X.mean(0)) / np.sqrt(X.var(0) + 1e-5), "dx": X, "eps": 1e-5})
    assert verdict.status == 2 and verdict.headline == (
        "the dump: y right; dx not judged: dy is not in the dump."
    )


def test_the_probes_cross_block_sizes_and_have_strides(tmp_path: Path) -> None:
    path = tmp_path / "probes.npz"
    probes(path=path, dtype="bfloat16")
    dump = read_dumps([path])
    sizes = {name.partition("/")[0]: v.size // 33 for name, v in dump.items() if name.endswith("/x")}
    assert list(sizes.values()) == [1023, 1025, 4097, 1, 1025, 42]
    for key in ("x", "dy"):
        values, buffer = (as_float64(key, dump[f"strided/{key}{end}"])[0] for end in ("", "_buffer"))
        offset, strides = int(dump[f"strided/{key}_offset"]), dump[f"strided/{key}_strides"]
        places = offset + sum(np.indices(values.shape)[a] * strides[a] for a in range(4))
        np.testing.assert_array_equal(buffer[places], values)
        assert np.isnan(np.delete(buffer, places)).all()
    far = probes(dtype="float32")["offset/x"]
    assert far.mean() == pytest.approx(1e4, rel=1e-3)
