"""Dumps: files, dtypes, sentences about bad ones, and the probes that are written for kernels."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lens.checker.kernels import dumped, inputs, kernel, pairwise, two_passes

from xhat.errors import ArgumentError, DtypeError, ShapeError
from xhat.lens import check_data, probes
from xhat.lens.checker.kernels.dumps import as_float64, read_dumps


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
