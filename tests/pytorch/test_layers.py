"""The layers as modules: what recognises them, how their state travels, and the tools of torch that handle them."""

import copy
import inspect
import io
import pickle
from typing import Any

import pytest
import torch
from beside import CHANNELS, TANGENT, X, layers, same
from definition import NO_BIAS
from torch import Tensor, nn
from torch.nn.utils import fusion, parametrize, prune

import xhat.torch as xt
from xhat.errors import OptionError

PAIRS: list[tuple[Any, Any, tuple[int, ...]]] = [
    (xt.BatchNorm1d, nn.BatchNorm1d, (4, 3)),
    (xt.BatchNorm1d, nn.BatchNorm1d, (4, 3, 5)),
    (xt.BatchNorm2d, nn.BatchNorm2d, (4, 3, 5, 2)),
    (xt.BatchNorm3d, nn.BatchNorm3d, (4, 3, 5, 2, 2)),
]
LAZY: list[tuple[Any, Any, Any, tuple[int, ...]]] = [
    (xt.LazyBatchNorm1d, nn.LazyBatchNorm1d, xt.BatchNorm1d, (4, 3)),
    (xt.LazyBatchNorm2d, nn.LazyBatchNorm2d, xt.BatchNorm2d, (4, 3, 5, 2)),
    (xt.LazyBatchNorm3d, nn.LazyBatchNorm3d, xt.BatchNorm3d, (4, 3, 5, 2, 2)),
]
OPTIONS: list[dict[str, Any]] = [
    {}, {"affine": False}, NO_BIAS, {"track_running_stats": False}, {"momentum": None, "eps": 0.1},
]  # fmt: skip
PAIRED = pytest.mark.parametrize(("kind", "theirs", "shape"), PAIRS, ids=str)


def trained(layer: nn.Module, steps: int = 2) -> nn.Module:
    """A layer whose state is no default."""
    for i in range(steps):
        layer(X.float() * (i + 1) + i)
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(torch.linspace(0, 1, CHANNELS))
    return layer


# ------------------------------------------------------------ what they are


@PAIRED
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_they_are_torchs_layers(
    kind: Any, theirs: Any, shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    """By class, by attributes, by parameters and buffers, and by what is printed."""
    a, b = kind(3, **options), theirs(3, **options)
    assert isinstance(a, theirs) and isinstance(a, nn.modules.batchnorm._BatchNorm)
    assert repr(a) == repr(b)
    for name in ("num_features", "eps", "momentum", "affine", "track_running_stats", "training"):
        assert getattr(a, name) == getattr(b, name)
    for attribute in ("named_parameters", "named_buffers"):
        named_a, named_b = dict(getattr(a, attribute)()), dict(getattr(b, attribute)())
        assert list(named_a) == list(named_b)
        torch.testing.assert_close(named_a, named_b, rtol=0, atol=0)
    assert list(a.state_dict()) == list(b.state_dict())
    assert a.state_dict()._metadata == b.state_dict()._metadata  # type: ignore[attr-defined]
    x = torch.arange(float(torch.Size(shape).numel())).reshape(shape)
    torch.testing.assert_close(a(x), b(x))
    assert a.__constants__ == b.__constants__


def test_arguments_are_torchs_and_more() -> None:
    theirs = list(inspect.signature(nn.BatchNorm2d.__init__).parameters.values())
    more = {"correction": 0, "running_correction": 1, "activation": None, "nonfinite": "propagate"}
    shown = repr(xt.BatchNorm2d(3, correction=1, running_correction=0, activation="relu", nonfinite="skip"))
    assert shown.endswith("correction=1, running_correction=0, activation='relu', nonfinite='skip')")
    layer = xt.BatchNorm2d(3, *[p.default for p in theirs[2:] if p.kind is p.POSITIONAL_OR_KEYWORD])
    assert {name: getattr(layer, name) for name in more} == more
    parameters = inspect.signature(xt.batch_norm).parameters
    assert list(parameters)[:8] == list(inspect.signature(nn.functional.batch_norm).parameters)
    assert {name: parameters[name].default for name in more} == more


def test_an_option_that_the_function_does_not_have_is_named() -> None:
    with pytest.raises(OptionError) as raised:
        xt.batch_norm(torch.ones(4, 3), None, None, training=True, epsilon=1e-3)  # type: ignore[arg-type]
    assert isinstance(raised.value, TypeError)
    assert str(raised.value) == (
        "batch_norm: got an option 'epsilon', which it does not have. It is called eps here."
    )


# ------------------------------------------------------------ state that travels


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_checkpoints_load_in_both_directions(options: dict[str, Any]) -> None:
    ours, theirs = trained(xt.BatchNorm2d(3, **options)), trained(nn.BatchNorm2d(3, **options), 3)
    for source, target in ((ours, nn.BatchNorm2d(3, **options)), (theirs, xt.BatchNorm2d(3, **options))):
        file = io.BytesIO()
        torch.save(source.state_dict(), file)
        file.seek(0)
        target.load_state_dict(torch.load(file, weights_only=True))
        torch.testing.assert_close(dict(target.state_dict()), dict(source.state_dict()), rtol=0, atol=0)
        for training in (True, False):
            torch.testing.assert_close(target.train(training)(X.float()), source.train(training)(X.float()))


def test_an_old_checkpoint_without_a_count_loads() -> None:
    """Those of torch before 0.4.1."""
    for layer in layers():
        state = layer.state_dict()
        del state["num_batches_tracked"]
        state._metadata = {"": {"version": 1}}
        layer.load_state_dict(state)
        assert layer.num_batches_tracked == 0


@pytest.mark.parametrize(
    "options", [{}, {"activation": ("leaky_relu", 0.1), "nonfinite": "skip", "correction": 1}], ids=str
)
def test_copies(options: dict[str, Any]) -> None:
    """deepcopy, pickle and torch.save keep the numbers and the options, and share nothing."""
    layer = trained(xt.BatchNorm2d(3, **options))
    file = io.BytesIO()
    torch.save(layer, file)
    file.seek(0)
    for twin in (
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(file, weights_only=False),
    ):
        assert type(twin) is xt.BatchNorm2d and repr(twin) == repr(layer)
        y = twin(X.float())
        other = copy.deepcopy(layer)
        assert torch.equal(y, other(X.float()))
        torch.testing.assert_close(dict(twin.named_buffers()), dict(other.named_buffers()), rtol=0, atol=0)
        assert not torch.equal(twin.running_mean, layer.running_mean)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
def test_casts(dtype: torch.dtype) -> None:
    """Parameters are cast; statistics are float32 or wider, and the count stays whole."""
    wide = dtype if dtype.itemsize >= 4 else torch.float32
    for layer in (
        trained(xt.BatchNorm2d(3)).to(dtype),
        trained(xt.BatchNorm2d(3)).type(dtype),
        xt.BatchNorm2d(3, dtype=dtype),
        nn.Sequential(trained(xt.BatchNorm2d(3))).to(dtype=dtype)[0],
    ):
        assert layer.weight.dtype == layer.bias.dtype == dtype
        assert layer.running_mean.dtype == layer.running_var.dtype == wide
        assert layer.num_batches_tracked.dtype == torch.int64
        y = layer(X.to(dtype))
        assert y.dtype == dtype
    before = trained(xt.BatchNorm2d(3))
    assert torch.equal(copy.deepcopy(before).half().float().running_var, before.running_var)
    theirs = nn.BatchNorm2d(3).to(dtype)
    theirs.load_state_dict(layer.state_dict())
    layer.load_state_dict(theirs.state_dict())
    assert layer.running_var.dtype == wide


def test_devices() -> None:
    """Made without numbers, and given room later."""
    layer = xt.BatchNorm2d(3, device="meta", nonfinite="skip")
    assert {b.device.type for b in layer.buffers()} == {"meta"}
    layer = layer.to_empty(device="cpu")
    layer.reset_parameters()
    theirs = nn.BatchNorm2d(3)
    torch.testing.assert_close(dict(layer.state_dict()), dict(theirs.state_dict()), rtol=0, atol=0)
    assert not layer.skipped.any()
    torch.testing.assert_close(layer(X.float()), theirs(X.float()))


@pytest.mark.parametrize(("kind", "theirs", "becomes", "shape"), LAZY, ids=str)
@pytest.mark.parametrize("options", [*OPTIONS, {"dtype": torch.float16}], ids=str)
def test_lazy_layers(
    kind: Any, theirs: Any, becomes: Any, shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    a, b = kind(**options, activation="relu", nonfinite="skip"), theirs(**options)
    x = (
        torch.arange(float(torch.Size(shape).numel())).reshape(shape).to(options.get("dtype", torch.float32))
        / 10
    )
    y = a(x)
    torch.testing.assert_close(y, b(x).relu(), rtol=2e-3, atol=2e-3)
    assert type(a) is becomes and a.num_features == 3 and a.activation == "relu"
    assert a.running_mean is None or a.running_mean.dtype == torch.float32
    assert list(a.state_dict()) == list(b.state_dict())
    assert (a.skipped is None) == (not a.track_running_stats)
    full = becomes(3, **options)
    lazy = kind(**options)
    lazy.load_state_dict(full.state_dict())
    torch.testing.assert_close(dict(lazy.state_dict()), dict(full.state_dict()), rtol=0, atol=0)
    torch.testing.assert_close(lazy(x), full(x), rtol=0, atol=0)


# ------------------------------------------------------------ tools that handle them


def both(change: Any, training: bool = True) -> None:
    """Ours and torch's layer agree after both were changed, in training and then in evaluation."""
    ours, theirs = (change(layer) or layer for layer in layers(training))
    for mode in (True, False):
        found = []
        for layer in (ours, theirs):
            x = X.clone().requires_grad_()
            layer.zero_grad()
            y = layer.train(mode)(x)
            y.backward(TANGENT)
            found.append((y, x.grad, [p.grad for p in layer.parameters()], list(layer.buffers())))
        same(found[0], found[1])


class Squared(nn.Module):
    """A parametrization."""

    def forward(self, w: Tensor) -> Tensor:
        return w * w


def test_attributes_that_change() -> None:
    """As in torch's layer, which looks at them in every call."""
    both(lambda layer: setattr(layer, "momentum", 1.0))
    both(lambda layer: setattr(layer, "momentum", None))
    both(lambda layer: setattr(layer, "eps", 0.5))
    both(lambda layer: setattr(layer, "track_running_stats", False))
    both(lambda layer: setattr(layer, "weight", None))
    both(lambda layer: layer.reset_parameters())
    both(lambda layer: layer.reset_running_stats())


def test_parameters_that_are_computed() -> None:
    """By a parametrization, by pruning, or as a plain attribute."""
    both(lambda layer: parametrize.register_parametrization(layer, "weight", Squared()) and None)
    both(lambda layer: prune.l1_unstructured(layer, "weight", amount=1) and None)

    def plain(layer: nn.Module) -> None:
        value = layer.weight.detach() * 2
        del layer.weight
        layer.weight = value

    both(plain)


def test_hooks_and_subclasses() -> None:
    seen: list[str] = []

    class Louder(xt.BatchNorm2d):
        def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            seen.append("forward")
            return super().forward(input * 2, *args, **kwargs)

    layer = Louder(3, dtype=torch.float64)
    layer.register_forward_hook(lambda m, i, o: seen.append("hook") or o + 1)
    layer.register_forward_pre_hook(lambda m, i: seen.append("pre"))
    same(layer(X), xt.BatchNorm2d(3, dtype=torch.float64)(X * 2) + 1)
    assert seen == ["pre", "forward", "hook"]


def test_tools_of_torch_recognise_them() -> None:
    """Averaged weights, removal of statistics, folding into a convolution."""
    ours, theirs = layers(training=False)
    for tracked in (copy.deepcopy(layer) for layer in (ours, theirs)):
        torch.func.replace_all_batch_norm_modules_(tracked)
        assert tracked.running_mean is None and not tracked.track_running_stats
    convolution = nn.Conv2d(2, CHANNELS, 1, dtype=torch.float64)
    x = X[:, :2]
    same(fusion.fuse_conv_bn_eval(convolution.eval(), ours)(x), ours(convolution(x)))
    averaged = torch.optim.swa_utils.AveragedModel(ours)
    averaged.update_parameters(ours)
    same(averaged(X), theirs(X))
    assert isinstance(nn.SyncBatchNorm.convert_sync_batchnorm(ours), nn.SyncBatchNorm)
