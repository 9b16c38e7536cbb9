"""The names of other libraries, as options and in saved states: refused in a sentence that has the remedy."""

from typing import Any

import numpy as np
import pytest

import xhat
from xhat import errors
from xhat.errors import ArgumentError
from xhat.numpy import BatchNorm

X = np.random.default_rng(0).normal(size=(8, 3, 5)).astype(np.float32)
ZERO, ONE = np.zeros(3), np.ones(3)


@pytest.mark.parametrize(
    ("function", "option", "remedy"),
    [
        (
            xhat.batch_norm,
            "training",
            " batch_norm normalizes by the batch's own statistics, normalize by given ones.",
        ),
        (xhat.batch_norm, "momentum", " xhat.numpy.BatchNorm is the layer with running statistics."),
        (xhat.batch_norm, "epsilon", " It is called eps here."),
        (xhat.batch_norm, "colour", ""),
        (lambda x, **o: xhat.normalize(x, ZERO, ONE, **o), "weight", " It is called gamma here."),
        (
            xhat.moments,
            "training",
            " batch_norm normalizes by the batch's own statistics, normalize by given ones.",
        ),
        (lambda x, **o: xhat.batch_norm_backward(x, xhat.batch_norm(x)[1], **o), "foo", ""),
        (lambda x, **o: BatchNorm(3, **o), "epsilon", " It is called eps here."),
        (lambda x, **o: BatchNorm(3, **o), "track_running_stats", " It is called track_running here."),
        (lambda x, **o: BatchNorm(3, **o), "scale", " affine=False leaves out gamma and beta."),
    ],
)
def test_an_option_of_other_libraries(function: Any, option: str, remedy: str) -> None:
    with pytest.raises(errors.OptionError) as raised:
        function(X, **{option: 1})
    assert isinstance(raised.value, TypeError)
    assert str(raised.value).split(": ", 1)[1] == f"got an option {option!r}, which it does not have.{remedy}"


@pytest.mark.parametrize(
    ("state", "remedy"),
    [
        (
            dict(weight=1, bias=1, running_mean=1, running_var=1, num_batches_tracked=1),
            """These are PyTorch's names: pass {"gamma": state["weight"], "beta": state["bias"], "updates": """
            """state["num_batches_tracked"], ...}.""",
        ),
        (
            dict(gamma=1, beta=1, moving_mean=1, moving_variance=1),
            """These are Keras's names: pass {"running_mean": state["moving_mean"], "running_var": """
            """state["moving_variance"], ...}.""",
        ),
        (
            dict(scale=1, bias=1, mean=1, var=1),
            """These are Flax's names: pass {"gamma": state["scale"], "beta": """,
        ),
        (
            {f"bn/{name}:0": 1 for name in ("gamma", "beta", "moving_mean", "moving_variance")},
            "These are Keras's names: pass "
            """{"gamma": state["bn/gamma:0"], "beta": state["bn/beta:0"], "running_mean": """
            """state["bn/moving_mean:0"], "running_var": state["bn/moving_variance:0"], ...}.""",
        ),
        (
            {"stem.1.weight": 1, "stem.1.bias": 1, "stem.1.running_mean": 1, "stem.1.running_var": 1},
            """ These are PyTorch's names: pass {"gamma": state["stem.1.weight"], "beta": state["stem.1.bias"], """
            """"running_mean": state["stem.1.running_mean"], "running_var": state["stem.1.running_var"], ...}.""",
        ),
        (
            {"bn/scale": 1, "bn/offset": 1}
            | {
                f"bn/~/{ema}/{name}": 1
                for ema in ("mean_ema", "var_ema")
                for name in ("average", "counter", "hidden")
            },
            "These are Haiku's names: pass "
            """{"gamma": state["bn/scale"], "beta": state["bn/offset"], "running_mean": """
            """state["bn/~/mean_ema/average"], "running_var": state["bn/~/var_ema/average"], "updates": """
            """state["bn/~/mean_ema/counter"], ...}.""",
        ),
        (dict(gamma=1, colour=1), None),
    ],
)
def test_the_names_of_other_libraries(state: dict[str, Any], remedy: str | None) -> None:
    with pytest.raises(ArgumentError) as raised:
        BatchNorm(5).load_state_dict(state)
    assert "missing, expected gamma, beta, running_mean, running_var, updates." in str(raised.value)
    assert remedy in str(raised.value) if remedy else str(raised.value).endswith("updates.")
