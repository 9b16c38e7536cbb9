"""xhat.numpy.BatchNorm: its state, its options, and what it says about wrong ones."""

import copy
import pickle

import numpy as np
import pytest
from conftest import DTYPES

from xhat.errors import ArgumentError, ContextError, DtypeError, ShapeError
from xhat.numpy import BatchNorm

RNG = np.random.default_rng(8)


def layer_with_parameters(features, **options):
    layer = BatchNorm(features, **options)
    layer.gamma[...] = RNG.uniform(0.5, 2, features)
    layer.beta[...] = RNG.normal(size=features)
    return layer


def test_backward_needs_a_forward_and_only_once():
    layer = BatchNorm(3)
    x = RNG.normal(size=(8, 3)).astype(np.float32)
    with pytest.raises(ContextError) as caught:
        layer.backward(x)
    assert str(caught.value) == (
        "BatchNorm.backward: there is no forward to differentiate, call forward first."
    )
    layer.forward(x)
    with pytest.raises(ShapeError):
        layer.backward(x[:4])
    layer.backward(x)  # a refused dy does not use the forward up
    with pytest.raises(ContextError) as caught:
        layer.backward(x)
    assert str(caught.value) == (
        "BatchNorm.backward: the last forward was already differentiated, call forward again."
    )


# State


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_state_moves_to_another_layer(dtype):
    source = layer_with_parameters(5, dtype=dtype)
    source.forward(RNG.normal(4, 2, (8, 5)).astype(dtype))
    state = source.state_dict()
    assert list(state) == ["gamma", "beta", "running_mean", "running_var", "updates"]
    assert all(isinstance(value, np.ndarray) for value in state.values())
    target = BatchNorm(5, dtype=dtype)
    gamma = target.gamma
    target.load_state_dict(state)
    assert target.gamma is gamma  # an optimizer may hold it
    x = RNG.normal(4, 2, (3, 5)).astype(dtype)
    np.testing.assert_array_equal(target.forward(x, training=False), source.forward(x, training=False))
    assert target.updates == 1
    state["gamma"][...] = 9
    assert not (source.gamma == 9).any()
    assert not (target.gamma == 9).any()


def test_a_float32_state_loads_in_float64_and_back():
    narrow, wide = layer_with_parameters(5), BatchNorm(5, dtype=np.float64)
    wide.load_state_dict(narrow.state_dict())
    assert wide.gamma.dtype == np.float64
    narrow.load_state_dict(wide.state_dict())
    np.testing.assert_array_equal(narrow.gamma, wide.gamma)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"gamma": None},
            ArgumentError,
            "gamma missing, expected gamma, beta, running_mean, running_var, updates",
        ),
        ({"weight": np.ones(5)}, ArgumentError, "weight unexpected, expected only gamma, beta, running_mean"),
        ({"beta": np.ones(4)}, ShapeError, r"beta has shape \(4,\), expected \(5,\)\."),
        ({"beta": [[1.0], [1.0, 2.0]]}, ShapeError, "beta makes no array, expected rows of equal length"),
        ({"beta": np.ones(5, int)}, DtypeError, "beta has dtype int64, expected a real floating array"),
        (
            {"beta": np.ones(5, complex)},
            DtypeError,
            "beta has dtype complex128, expected a real floating array",
        ),
        ({"updates": np.array(1.5)}, DtypeError, "updates has dtype float64, expected an integer"),
        ({"updates": np.array(-1)}, ArgumentError, "updates has the value -1, expected none below 0"),
        (
            {"running_var": -np.ones(5)},
            ArgumentError,
            "running_var has the value -1.0, expected none below 0",
        ),
        (
            {"running_var": np.array([1, np.nan, -2, 3, -1])},
            ArgumentError,
            "running_var has the value -2.0, expected none below 0",
        ),
        (
            {"running_var": np.full(5, 1e60)},
            ArgumentError,
            r"running_var reaches 1e\+60, beyond float32; use",
        ),
    ],
)
def test_a_wrong_state_is_refused_whole(change, error, message):
    layer = layer_with_parameters(5)
    before = layer.state_dict()
    state = {**{name: value + 1 for name, value in before.items()}, **change}
    state = {name: value for name, value in state.items() if value is not None}
    with pytest.raises(error, match=f"^load_state_dict: {message}"):
        layer.load_state_dict(state)
    for name, value in layer.state_dict().items():
        np.testing.assert_array_equal(value, before[name])


@pytest.mark.parametrize("state", [None, 1, "gamma", [("gamma", 1)]])
def test_a_state_that_is_no_mapping_is_refused(state):
    with pytest.raises(
        ArgumentError, match=f"^load_state_dict: state is {type(state).__name__}, expected a mapping"
    ):
        layer_with_parameters(5).load_state_dict(state)


def test_a_layer_can_be_copied_and_pickled():
    layer = layer_with_parameters(5)
    x = RNG.normal(size=(8, 5)).astype(np.float32)
    layer.forward(x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        np.testing.assert_array_equal(twin.forward(x, training=False), layer.forward(x, training=False))
        assert twin.gamma is not layer.gamma


def test_a_masked_array_is_no_state_and_bfloat16_is():
    layer = layer_with_parameters(5)
    state = layer.state_dict()
    with pytest.raises(DtypeError, match="gamma is a masked array"):
        layer.load_state_dict({**state, "gamma": np.ma.masked_array(state["gamma"], np.arange(5) < 2)})
    layer.load_state_dict({**state, "gamma": np.full(5, 1.5, DTYPES["bfloat16"])})
    np.testing.assert_array_equal(layer.gamma, np.full(5, 1.5, np.float32))


@pytest.mark.parametrize(
    ("name", "value", "error", "said"),
    [
        ("gamma", [1.0] * 5, DtypeError, "gamma is list, expected a floating array of NumPy, or None."),
        ("beta", np.zeros(5, int), DtypeError, "beta is int64, expected a floating array of NumPy, or None."),
        ("running_mean", np.zeros((2, 5)), ShapeError, r"running_mean has shape \(2, 5\), expected \(5,\)."),
        (
            "running_var",
            None,
            ArgumentError,
            "one of running_mean and running_var is None, expected both or neither.",
        ),
        ("momentum", "a", ArgumentError, "momentum is 'a', expected None or 0 to 1."),
        ("momentum", 7, ArgumentError, "momentum is 7, expected None or 0 to 1."),
    ],
)
def test_an_attribute_that_is_set_to_what_it_cannot_be(name, value, error, said):
    layer = layer_with_parameters(5)
    setattr(layer, name, value)
    before = copy.deepcopy(vars(layer))
    with pytest.raises(error, match=f"^BatchNorm: {said}"):
        layer(RNG.normal(size=(8, 5)).astype(np.float32))
    assert layer.updates == before["updates"] and layer.context is None


# Options


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"num_features": 0}, ArgumentError, "num_features is 0, expected a positive int"),
        ({"num_features": 2.5}, ArgumentError, "num_features is 2.5, expected a positive int"),
        (
            {"num_features": np.zeros((4, 3))},
            ArgumentError,
            "num_features is an array of shape (4, 3), expected a positive int.",
        ),
        (
            {"num_features": (3, 4)},
            ArgumentError,
            "num_features (3, 4) is for 2 channel axes, axis 1 names 1.",
        ),
        ({"axis": (1, 2)}, ArgumentError, "num_features 5 is for 1 channel axes, axis (1, 2) names 2."),
        ({"eps": 0}, ArgumentError, "eps is 0, expected a finite number above 0."),
        ({"eps": float("nan")}, ArgumentError, "eps is nan, expected a finite number above 0."),
        ({"eps": None}, ArgumentError, "eps is None, expected a finite number above 0."),
        ({"momentum": 1.1}, ArgumentError, "momentum is 1.1, expected None or 0 to 1."),
        ({"momentum": -0.1}, ArgumentError, "momentum is -0.1, expected None or 0 to 1."),
        ({"momentum": float("nan")}, ArgumentError, "momentum is nan, expected None or 0 to 1."),
        ({"correction": 2}, ArgumentError, "correction is 2, expected 0 or 1."),
        ({"correction": ("a", [1])}, ArgumentError, "correction is ('a', [1]), expected 0 or 1."),
        ({"correction": True}, ArgumentError, "correction is True, expected 0 or 1."),
        ({"correction": 1 + 0j}, ArgumentError, "correction is (1+0j), expected 0 or 1."),
        ({"running_correction": -1}, ArgumentError, "running_correction is -1, expected 0 or 1."),
        ({"dtype": np.float16}, DtypeError, "dtype is float16, expected float32 or float64."),
        ({"dtype": int}, DtypeError, "dtype is int64, expected float32 or float64."),
        (
            {"dtype": "single precision"},
            DtypeError,
            "dtype is 'single precision', expected float32 or float64.",
        ),
        ({"dtype": 32}, DtypeError, "dtype is 32, expected float32 or float64."),
    ],
)
def test_wrong_options_are_refused(options, error, message):
    with pytest.raises(error) as caught:
        BatchNorm(**{"num_features": 5, **options})
    assert str(caught.value).startswith(f"BatchNorm: {message}")


def test_a_layer_shows_its_options():
    assert repr(BatchNorm(5, activation="relu")) == (
        "BatchNorm(5, eps=1e-05, momentum=0.1, axis=1, correction=0, running_correction=1, activation='relu', "
        "affine=True, track_running=True, dtype=float32)"
    )


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        *[("updates", value, "an int of at least 0") for value in ("a", None, -1, 1.5, True)],
        *[("running_correction", value, "0 or 1") for value in ("a", None, 5, True)],
    ],
)
def test_an_attribute_that_is_set_to_what_it_cannot_be_moves_nothing(name, value, expected, momentum):
    layer = layer_with_parameters(5, momentum=momentum)
    setattr(layer, name, value)
    mean, var = layer.running_mean.copy(), layer.running_var.copy()
    with pytest.raises(ArgumentError) as caught:
        layer.forward(RNG.normal(4, 2, (8, 5)).astype(np.float32))
    assert str(caught.value) == f"BatchNorm: {name} is {value!r}, expected {expected}."
    np.testing.assert_array_equal(layer.running_mean, mean)
    np.testing.assert_array_equal(layer.running_var, var)
    assert getattr(layer, name) is value
    assert layer.context is None
