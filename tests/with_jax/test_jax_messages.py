"""What NumPy's gate refuses, `xhat.jax` refuses with the same sentences, also while a call is traced."""

from typing import Any

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp  # noqa: E402
from jax_beside import enable_x64  # noqa: E402
from test_messages import C3, C4, FORWARD, X  # noqa: E402

import xhat  # noqa: E402
import xhat.jax as xj  # noqa: E402
from xhat import errors  # noqa: E402

# All but those about `out`, which arrays that never change do not have.
CALLS = [call for call in FORWARD if "out" not in call[1]]
IDS = [call[-1][:60] for call in CALLS]


def traced(x: Any, arguments: dict[str, Any]) -> None:
    """The call with every array that JAX takes as a traced argument."""
    arrays = {k: v for k, v in {"x": x, **arguments}.items() if isinstance(v, np.ndarray) and jaxlike(v)}
    rest = {k: v for k, v in {"x": x, **arguments}.items() if k not in arrays}
    jax.eval_shape(lambda arrays: xj.batch_norm(**{**arrays, **rest}), arrays)


def jaxlike(a: Any) -> bool:
    return type(a) is np.ndarray and a.dtype.kind in "biufc" and a.dtype.isnative


@pytest.mark.parametrize(("x", "arguments", "kind", "sentence"), CALLS, ids=IDS)
def test_batch_norm(x: Any, arguments: dict[str, Any], kind: type[errors.XhatError], sentence: str) -> None:
    with enable_x64(True), pytest.raises(kind) as raised:
        xj.batch_norm(x, **{"axis": 1, **arguments})
    assert str(raised.value) == f"batch_norm: {sentence}"


# Values can't be looked at while they are traced.
OF_VALUES = ("negative weight", "NaN or infinite", "every weight", "the mask leaves", "weights sum to")


@pytest.mark.parametrize(
    ("x", "arguments", "kind", "sentence"),
    [call for call in CALLS if not any(v in call[-1] for v in OF_VALUES)],
    ids=[i for i, call in zip(IDS, CALLS, strict=True) if not any(v in call[-1] for v in OF_VALUES)],
)
def test_batch_norm_while_it_is_traced(
    x: Any, arguments: dict[str, Any], kind: type[errors.XhatError], sentence: str
) -> None:
    with enable_x64(True), pytest.raises(kind) as raised:
        traced(x, {"axis": 1, **arguments})
    assert str(raised.value) == f"batch_norm: {sentence}"


@pytest.mark.parametrize(
    ("arguments", "kind"),
    [
        ({"mean": None, "var": C3}, errors.ArgumentError),
        ({"mean": C4, "var": C3}, errors.ShapeError),
        ({"mean": C3, "var": -C3}, errors.ArgumentError),
        ({"mean": C3, "var": C3, "beta": C4}, errors.ShapeError),
        ({"mean": C3, "var": C3.astype(int)}, errors.DtypeError),
        ({"mean": C3, "var": C3, "eps": 0}, errors.ArgumentError),
        ({"mean": C3, "var": C3, "activation": "cubic"}, errors.ArgumentError),
    ],
)
def test_normalize(arguments: dict[str, Any], kind: type[errors.XhatError]) -> None:
    said = []
    for normalize in (xhat.normalize, xj.normalize):
        with pytest.raises(kind) as raised:
            normalize(X, axis=1, **arguments)
        said.append(str(raised.value))
    assert said[0] == said[1]


@pytest.mark.parametrize(
    ("call", "kind", "sentence"),
    [
        (lambda: xj.batch_norm(X, momentum=0.9), errors.OptionError,
         "batch_norm: got an option 'momentum', which it does not have. "
         "xhat.flax and xhat.equinox have layers with running statistics."),
        (lambda: xj.batch_norm(X, scale=C3), errors.OptionError,
         "batch_norm: got an option 'scale', which it does not have. It is called gamma here."),
        (lambda: xj.batch_norm(X, axis_index_groups=[[0, 1]]), errors.ArgumentError,
         "batch_norm: axis_index_groups is given without an axis_name, expected both. "
         "Pass the name of the devices' axis."),
        (lambda: xj.batch_norm(jax.random.key(0)[None]), errors.DtypeError,
         "batch_norm: x has dtype key<fry>, expected float64, float32, float16 or bfloat16. "
         "Only real floating-point numbers have a batch norm here."),
        (lambda: xj.moments(X, axis=3), errors.ShapeError,
         "moments: axis 3 does not exist in x of 3 dimensions, expected -3 to 2."),
        (lambda: xj.moments(X, mask=-np.ones((8, 3, 1))), errors.ArgumentError,
         "moments: mask has a negative weight (-1), expected weights of at least 0."),
        (lambda: xj.merge(xj.moments(X), 1), errors.ArgumentError,
         "merge: got int, expected Moments: merge(a, b, c)."),
        (lambda: xj.merge(xj.moments(X), xj.moments(X, axis=1)), errors.ShapeError,
         "merge: moments have channels (3,), expected (5,) like the first."),
        (lambda: xj.moments(X).var(2), errors.ArgumentError,
         "var: correction is 2, expected 0 (divide by m) or 1 (divide by m - 1)."),
        (lambda: xj.normalize(X, (C3, C4), C3, axis=1), errors.ShapeError,
         "normalize: mean has shape (4,), expected (3,) to match axis 1 of x (8, 3, 5)."),
    ],
)  # fmt: skip
def test_what_numpy_does_not_have(call: Any, kind: type[errors.XhatError], sentence: str) -> None:
    with pytest.raises(kind) as raised:
        call()
    assert str(raised.value) == sentence


def test_under_jit_a_mask_without_weights_gives_nan_and_count_0() -> None:
    y, m = jax.jit(lambda x, mask: xj.batch_norm(x, mask=mask, axis=1))(X, jnp.zeros((8, 1, 5)))
    assert np.isnan(y).all()
    assert float(m.count) == 0


def test_an_unbound_name_is_the_error_of_jax() -> None:
    with pytest.raises(NameError, match="unbound axis name"):
        xj.batch_norm(X, axis_name="devices")
