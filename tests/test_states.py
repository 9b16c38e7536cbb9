"""The state of a batch norm from one framework to another: into their own layers, whose results are compared."""

from typing import Any

import numpy as np
import oracle
import pytest

import xhat
import xhat.numpy
from xhat.errors import ArgumentError, DtypeError, OptionError, ShapeError
from xhat.stored import CONVENTIONS, read

C, M, EPS = 5, 24, 1e-3
RNG = np.random.default_rng(0)
GAMMA, BETA, MEAN = RNG.normal(size=(3, C)).astype(np.float32)
VAR = RNG.uniform(0.5, 2, size=C).astype(np.float32)
X = RNG.normal(1, 2, size=(7, C)).astype(np.float32)
STATE = {"gamma": GAMMA, "beta": BETA, "running_mean": MEAN, "running_var": VAR, "updates": np.array(7)}


def in_torch(state: Any, eps: float, momentum: float) -> Any:
    torch = pytest.importorskip("torch")
    layer = torch.nn.BatchNorm1d(C, eps=eps, momentum=momentum).eval()
    layer.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    return layer(torch.from_numpy(X)).detach().numpy(), layer.state_dict()


def in_keras(state: Any, **options: Any) -> Any:
    keras = pytest.importorskip("keras")
    layer = keras.layers.BatchNormalization(**options)
    layer.build(X.shape)
    for weight in layer.weights:
        weight.assign(state[weight.name])
    return keras.ops.convert_to_numpy(layer(X)), {w.name: w.value for w in layer.weights}


def in_nnx(state: Any, **options: Any) -> Any:
    pytest.importorskip("flax")
    from flax import nnx

    layer = nnx.BatchNorm(C, use_running_average=True, rngs=nnx.Rngs(0), **options)
    nnx.update(layer, state)
    return np.asarray(layer(X)), nnx.state(layer)


def in_linen(state: Any, **options: Any) -> Any:
    pytest.importorskip("flax")
    from flax import linen

    return np.asarray(linen.BatchNorm(use_running_average=True, **options).apply(state, X)), state


def in_equinox(state: Any, **options: Any) -> Any:
    eqx = pytest.importorskip("equinox")
    import jax

    layer, kept = eqx.nn.make_with_state(eqx.nn.BatchNorm)(C, "batch", mode="ema", inference=True, **options)
    weights = tuple(jax.numpy.asarray(state[name]) for name in ("weight", "bias"))
    layer = eqx.tree_at(lambda layer: (layer.weight, layer.bias), layer, weights)
    kept = kept.set(layer.ema_state_index, (state["running_mean"], state["running_var"]))
    y, _ = jax.vmap(layer, axis_name="batch", in_axes=(0, None), out_axes=(0, None))(X, kept)
    return np.asarray(y), state


def in_numpy(state: Any, **options: Any) -> Any:
    layer = xhat.numpy.BatchNorm(C, axis=-1, **options)
    layer.load_state_dict(state)
    return layer(X, training=False), layer.state_dict()


WAYS = dict(zip(CONVENTIONS, (in_torch, in_keras, in_nnx, in_linen, in_equinox, in_numpy), strict=True))


@pytest.mark.parametrize("framework", WAYS)
def test_a_layer_of_the_framework_computes_the_same_and_its_state_comes_back(framework: str) -> None:
    converted = xhat.convert_state(STATE, "numpy", framework, options={"eps": EPS, "momentum": 0.25})
    y, state = WAYS[framework](converted.state, **converted.options)
    assert oracle.worst(y, oracle.forward(X, GAMMA, BETA, axis=-1, eps=EPS, fixed=(MEAN, VAR)).y) <= 2e-6
    back = xhat.convert_state(state, framework, "numpy", options=converted.options)
    assert back.options == {"eps": EPS, "momentum": 0.25}
    counted = framework in ("torch", "numpy")
    for name, value in STATE.items():
        assert np.array_equal(back.state[name], value if counted or name != "updates" else 0)


@pytest.mark.parametrize("framework", WAYS)
def test_with_m_the_variance_is_what_the_new_layer_would_have_found(framework: str) -> None:
    """One batch of M values, with the weight of 1 for the new batch: m2 / (m - 1) and m2 / m."""
    batch = RNG.normal(size=(M, C)).astype(np.float32)
    m2 = oracle.moments(batch, axis=-1).m2
    unbiased = STATE | {"running_var": (m2 / (M - 1)).astype(np.float32)}
    converted = xhat.convert_state(unbiased, "numpy", framework, m=M)
    convention = CONVENTIONS[framework]
    ((values,), _) = (
        list(found.values()) if isinstance(found, dict) else found
        for found in read(converted.state, convention)
    )
    assert oracle.relative_l2(values[3], m2 / (M - convention.correction)) <= 1e-7
    assert oracle.relative_l2(values[3], m2 / (M - 1 + convention.correction)) > (
        0 if framework in ("torch", "numpy") else 0.01
    )


def test_the_notes_answer_the_question_of_m_minus_1() -> None:
    kept = xhat.convert_state(STATE, "numpy", "keras").notes[0]
    assert kept == (
        "running_var of xhat.numpy.BatchNorm is m2 / (m - 1), moving_variance of keras.layers.BatchNormalization is "
        "m2 / m, with m the values per channel of a training batch, which no state contains. The variance is copied, "
        "so evaluation gives what it gave; further training moves it to the other convention. Pass m to convert it now."
    )
    moved = xhat.convert_state(STATE, "numpy", "keras", m=100).notes[0]
    assert "With m = 100 the variance was multiplied by 0.99: " in moved
    assert "is m2 / (m - 1), with m" in xhat.convert_state(STATE, "numpy", "torch").notes[0]


def test_momentum_is_the_weight_of_the_other_side() -> None:
    def options(old: str, new: str, **given: Any) -> Any:
        return xhat.convert_state(
            xhat.convert_state(STATE, "numpy", old).state, old, new, options=given
        ).options

    assert options("torch", "keras") == {"epsilon": 1e-5, "momentum": 0.9}
    assert options("keras", "torch") == {"eps": 1e-3, "momentum": 0.01}
    assert options("flax.nnx", "keras", momentum=0.95) == {"epsilon": 1e-5, "momentum": 0.95}
    assert options("torch", "numpy", momentum=None) == {"eps": 1e-5, "momentum": None}
    assert options("torch", "keras", momentum=None) == {"epsilon": 1e-5}
    notes = xhat.convert_state(STATE, "numpy", "keras", options={"momentum": None}).notes
    assert any(
        note.startswith("momentum=None, the plain average of all batches, does not exist in keras")
        for note in notes
    )


def test_the_batch_norms_of_a_model_are_found_and_the_rest_is_named() -> None:
    bn = xhat.convert_state(STATE, "numpy", "torch").state
    model = {f"stem.1.{name}": value for name, value in bn.items()} | {
        "stem.0.weight": np.ones((C, 3, 3, 3)),
        "ln.bias": BETA,
    }
    converted = xhat.convert_state(model, "torch", "flax.linen")
    assert np.array_equal(converted.state["batch_stats"]["stem"]["1"]["var"], VAR)
    assert np.array_equal(converted.state["params"]["stem"]["1"]["scale"], GAMMA)
    assert converted.notes[-1] == "Left out, as no batch norms of torch: stem.0, ln."
    keras = xhat.convert_state(converted.state, "flax.linen", "keras").state
    assert set(keras) == {f"stem/1/{name}" for name in CONVENTIONS["keras"].names}
    again = xhat.convert_state(keras, "keras", "torch").state
    assert all(
        np.array_equal(again[f"stem.1.{name}"], bn[name]) for name in bn if name != "num_batches_tracked"
    )


def test_what_a_layer_does_not_have() -> None:
    converted = xhat.convert_state({"running_mean": MEAN, "running_var": VAR}, "equinox", "torch")
    assert set(converted.state) == {"running_mean", "running_var", "num_batches_tracked"}
    assert converted.state["num_batches_tracked"] == 0
    assert "The layer has no weight, so the new one is made without it." in converted.notes
    untracked = xhat.convert_state({"weight": GAMMA, "bias": BETA}, "torch", "numpy")
    assert set(untracked.state) == {"gamma", "beta"}


def test_the_result_is_a_copy() -> None:
    state = {name: np.array(value) for name, value in STATE.items()}
    converted = xhat.convert_state(state, "numpy", "numpy").state
    converted["gamma"][...] = 0
    assert np.array_equal(state["gamma"], GAMMA)


NAMES = "gamma, beta, running_mean, running_var, updates"
UNTRACKED = {"running_mean": None, "running_var": None, "updates": None}
BAD = [
    ({}, {"to": "tf"}, ArgumentError, f"to is 'tf', expected one of {', '.join(CONVENTIONS)}."),
    ({}, {"m": 1}, ArgumentError, "m is 1, expected the values per channel of a batch, more than 1."),
    ({"running_var": None}, {}, ArgumentError, f"running_var missing, expected {NAMES}."),
    ({"moving_mean": MEAN}, {}, ArgumentError, f"moving_mean unexpected, expected only {NAMES}."),
    (
        {"beta": BETA[:3]}, {}, ShapeError,
        "the shapes differ, expected one for all: gamma (5,), beta (3,), running_mean (5,), running_var (5,).",
    ),
    (
        {"running_var": -VAR}, {}, ArgumentError,
        f"running_var has the value {-VAR.max()}, expected none below 0.",
    ),
    (
        {"gamma": GAMMA.astype(np.int64)}, {}, DtypeError,
        "gamma has shape (5,) and dtype int64, expected real floating numbers.",
    ),
    ({"updates": 0.5}, {}, DtypeError, "updates has shape () and dtype float64, expected one integer."),
    (
        {}, {"options": {"axis": 1}}, OptionError,
        "options has 'axis', expected those of xhat.numpy.BatchNorm that matter here: eps, momentum.",
    ),
    ({}, {"options": {"momentum": 2}}, ArgumentError, "momentum is 2, expected 0 to 1, or None in torch."),
    (
        UNTRACKED, {}, ArgumentError, "running_mean, running_var missing, expected them: "
        "keras.layers.BatchNormalization always has running statistics.",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("change", "options", "error", "sentence"), BAD)
def test_bad_input_has_one_sentence(change: Any, options: Any, error: Any, sentence: str) -> None:
    state = {name: value for name, value in (STATE | change).items() if value is not None}
    with pytest.raises(error) as raised:
        xhat.convert_state(state, **{"from_": "numpy", "to": "keras", **options})
    assert str(raised.value) == f"convert_state: {sentence}"


def test_states_that_are_none() -> None:
    with pytest.raises(
        ArgumentError, match=r"^convert_state: state is list, expected a mapping of names to arrays\.$"
    ):
        xhat.convert_state([GAMMA], "torch", "keras")
    with pytest.raises(
        ArgumentError, match=r"^convert_state: there is no flax.linen.BatchNorm in the state, expected scale"
    ):
        xhat.convert_state({"scale": GAMMA}, "flax.linen", "keras")
    square = {name: np.ones((2, 3), np.float32) for name in ("mean", "var")}
    with pytest.raises(
        ShapeError, match=r"have shape \(2, 3\), expected one dimension: torch.nn.BatchNorm has one"
    ):
        xhat.convert_state(square, "flax.nnx", "torch")
