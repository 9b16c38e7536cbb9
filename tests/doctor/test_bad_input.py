"""Bad input gets one sentence, with what the model itself raised behind it, and changes nothing."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small import batches, loss, net, process, snapshot
from torch import nn

import xhat.torch as xt
from xhat.errors import ArgumentError


def refused(sentence: str, batches: Any, *args: Any, **options: Any) -> ArgumentError:
    """The error of a diagnosis, which must be this sentence and leave all as it was."""
    model = options.pop("model", None) or net()
    before, state = snapshot(model) if isinstance(model, nn.Module) else None, process()
    with pytest.raises(ArgumentError) as caught:
        xt.diagnose(model, batches, *args, progress=False, **options)
    assert str(caught.value) == sentence
    if before is not None:
        assert snapshot(model) == before
    assert process() == state
    return caught.value


def test_no_batches() -> None:
    refused("diagnose: there were no batches.", [])
    refused("diagnose: there were no batches.", iter(()))


def test_what_is_no_model_and_no_iterable() -> None:
    refused("diagnose: model is str, expected a torch.nn.Module.", batches(), model="resnet50")
    refused("diagnose: batches is int, expected an iterable of batches, such as a DataLoader.", 5)


@pytest.mark.parametrize(
    ("returned", "got"),
    [
        (lambda output: output, "a tensor of shape (6, 7)"),
        (lambda output: None, "NoneType"),
        (lambda output: "low", "str"),
        (lambda output: {"loss": output.sum()}, "dict"),
    ],
)
def test_a_loss_that_is_no_number(returned: Callable[[Any], Any], got: str) -> None:
    sentence = (
        f"diagnose: loss returned {got}, expected one number for a batch. Return its mean: "
        "loss=lambda output, batch: ....mean()"
    )
    refused(sentence, batches(), lambda output, batch: returned(output))


def test_a_loss_that_is_nan_in_every_mode() -> None:
    sentence = (
        "diagnose: the loss is NaN or infinite for every batch in every mode, so that nothing can be compared. Check "
        "the loss and the batches; batch norm is not at fault alone."
    )
    refused(sentence, batches(), lambda output, batch: output.sum() * float("nan"))


def test_a_model_that_raises() -> None:
    sentence = (
        "diagnose: the model or the loss raised RuntimeError in evaluation mode, with batch 0: Given groups=1, weight "
        "of size [4, 3, 3, 3], expected input[2, 5, 5, 4] to have 3 channels, but got 5 channels instead. Say how the "
        "model is called: forward=lambda model, batch: ..."
    )
    error = refused(sentence, [torch.randn(2, 5, 5, 4)])
    assert isinstance(error.__cause__, RuntimeError)


def test_a_loss_that_raises() -> None:
    sentence = (
        "diagnose: the model or the loss raised IndexError in evaluation mode, with batch 0: list index out of range. "
        "Say how the model is called: forward=lambda model, batch: ..."
    )
    assert isinstance(refused(sentence, batches(), lambda output, batch: [][0]).__cause__, IndexError)


@pytest.mark.parametrize(
    ("batch", "got"), [("a text", "str"), (3, "int"), ([], "NoneType"), ([["x"]], "list")]
)
def test_batches_that_are_no_tensors(batch: Any, got: str) -> None:
    sentence = (
        f"diagnose: a batch is {got}, expected a tensor, or a list, tuple or dict that holds the input. Say how the "
        "model is called: forward=lambda model, batch: ..."
    )
    refused(sentence, [batch], loss)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"loss": "mse"}, "loss is str, expected a function loss(output, batch)."),
        ({"forward": 3}, "forward is int, expected a function forward(model, batch)."),
        ({"optimizer": "sgd"}, "optimizer is str, expected a torch.optim.Optimizer."),
        ({"layers": 5}, "layers is int, expected paths of batch norms."),
    ],
)
def test_options_of_another_kind(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ArgumentError) as raised:
        xt.diagnose(net(), batches(), progress=False, **options)
    assert str(raised.value) == f"diagnose: {sentence}"
