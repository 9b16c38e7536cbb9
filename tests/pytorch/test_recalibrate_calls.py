"""`recalibrate` and how a model and its layers are called: what is understood, and what is refused."""

from typing import Any

import pytest
import torch
from test_recalibrate import LAYERS, Doubled, batches, moments
from torch import Tensor, nn

import xhat.torch as xt
from xhat.errors import ArgumentError, ShapeError
from xhat.torch.sync import groups


@pytest.mark.parametrize("kind", LAYERS)
def test_a_layer_may_be_called_by_keyword(kind: str) -> None:
    layer, data = LAYERS[kind](2), batches(4, 6)
    xt.recalibrate(layer, data, forward=lambda m, x: m(input=x), progress=False)
    torch.testing.assert_close(layer.running_mean.double(), moments(data)[0], rtol=1e-5, atol=1e-6)


class Own(nn.BatchNorm2d):
    """Its own arguments, and bytes for an input."""

    def forward(self, extra: Any, *, images: Any = None) -> Tensor:
        return super().forward(extra.float())


def test_the_input_of_somebodys_own_layer_is_its_first_argument() -> None:
    layer, x = Own(2), (batches(4)[0] * 9).to(torch.int16)
    xt.recalibrate(layer, [x], forward=lambda m, x: m(images="none", extra=x), progress=False)
    torch.testing.assert_close(layer.running_mean.double(), moments([x])[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (torch.ones(2), r"layer 'bn' has shape \(2,\), expected \(N, 2, ...\)"),
        (torch.ones(3, 4, 4, 2), r"layer 'bn' has shape \(3, 4, 4, 2\), expected"),
        ("x", r"layer 'bn' has class str, expected"),
    ],
)
def test_an_input_without_channels_is_refused(given: Any, said: str) -> None:
    model = nn.Sequential()
    model.bn = Doubled(2)
    with pytest.raises(ShapeError, match=said):
        xt.recalibrate(model, [given], forward=lambda m, x: m.bn(x), progress=False)
    assert not model.bn._forward_pre_hooks and not model.bn.running_mean.any()


@pytest.mark.parametrize("kind", [nn.LazyBatchNorm2d, xt.LazyBatchNorm2d])
def test_a_lazy_layer_meets_an_input_first(kind: type[nn.Module], monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = nn.Sequential(nn.Identity(), kind()), batches(4, 6)
    with pytest.raises(ArgumentError, match="recalibrate: layer '1' is lazy and has met no input"):
        xt.recalibrate(model, data, progress=False)
    assert xt.merge_running_statistics(model) is model  # there are no others
    monkeypatch.setattr(groups, "world_size", lambda group: 2)
    with pytest.raises(ArgumentError, match="merge_running_statistics: layer '1' is lazy"):
        xt.merge_running_statistics(model)
    monkeypatch.undo()
    model(data[0])
    assert xt.recalibrate(model, data, progress=False)[0].batches == 2


def test_batches_come_as_loaders_give_them() -> None:
    class Named(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x)

    data = batches(4, 6)
    expected = moments(data)[0]
    for form in (lambda x: x, lambda x: (x, "label"), lambda x: [x], lambda x: {"x": x}):
        model = Named(xt.BatchNorm2d(2))
        xt.recalibrate(model, (form(x) for x in data), progress=False)
        torch.testing.assert_close(model[0].running_mean.double(), expected, rtol=1e-5, atol=1e-6)


def test_what_cannot_be_done_is_refused() -> None:
    layer = xt.BatchNorm2d(2)
    with pytest.raises(
        ArgumentError, match=r"a batch is str, expected a tensor, .*forward=lambda model, batch"
    ):
        xt.recalibrate(layer, ["a"], progress=False)
    with pytest.raises(ArgumentError, match="there were no batches"):
        xt.recalibrate(layer, [], progress=False)
    with pytest.raises(ArgumentError, match="no batch norm whose running statistics may move"):
        xt.recalibrate(nn.Linear(2, 2), batches(3), progress=False)
    with pytest.raises(ArgumentError, match=r"model is int, expected a torch.nn.Module"):
        xt.recalibrate(3, [], progress=False)  # type: ignore[arg-type]
