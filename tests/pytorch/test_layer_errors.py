"""Bad input: one sentence with the layer's path, in torch's class of error and one of xhat's; nothing has changed."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import xhat.torch as xt
from xhat.errors import ArgumentError, DegenerateBatchError, DtypeError, ShapeError, XhatError

X = torch.arange(96.0).reshape(4, 3, 2, 4)

Call = Callable[[Any, Any], Any]  # the kind of layer, and how batch_norm is called


class Case:
    """One mistake: the call, xhat's error and sentence, and whether torch's layer makes an error of it at all."""

    def __init__(self, call: Call, error: type[XhatError], said: str, torchs: bool = True) -> None:
        self.call, self.error, self.said, self.torchs = call, error, said, torchs


def layer(channels: int = 3, **options: Any) -> Call:
    """A layer that is given what the case says under `x`, and the rest."""
    given = {key: options.pop(key) for key in ("x", "residual", "mask") if key in options}
    x = given.pop("x", X)
    return lambda kind, _: kind(channels, **options)(x, **given)


def call(*args: Any, **options: Any) -> Call:
    """The function."""
    return lambda _, function: function(*args, **options)


CASES = {
    "one value": Case(layer(x=X[:1, :, :1, :1]), DegenerateBatchError,
        "batch_norm: Expected more than 1 value per channel when training, got input size torch.Size([1, 3, 1, 1]): a "
        "single value has no variance. The usual causes: a last, smaller batch (drop_last=True in the loader), pooling "
        "to 1x1 before the layer, or a model used for inference without model.eval()."),
    "dimensions": Case(layer(x=X[0]), ShapeError,
        "batch_norm: expected 4D input (got 3D input): its shape is (3, 2, 4)."),
    "channels": Case(layer(4), ShapeError,
        "batch_norm: weight has shape (4,), expected (3,) to match dimension 1 of input (4, 3, 2, 4). "
        "Channels are dimension 1: pass input.movedim(-1, 1) where they are last."),
    "channels, in no dimension": Case(layer(5), ShapeError,
        "batch_norm: weight has shape (5,), expected (3,) to match dimension 1 of input (4, 3, 2, 4)."),
    "channels of statistics": Case(layer(4, affine=False), ShapeError,
        "batch_norm: running_mean and running_var have shapes (4,) and (4,), expected (3,) to match dimension 1 of "
        "input. Channels are dimension 1: pass input.movedim(-1, 1) where they are last."),
    "integers": Case(layer(x=X.int()), DtypeError,
        "batch_norm: input has dtype torch.int32, expected float64, float32, float16 or bfloat16. Convert it first, "
        "for example input.float()."),
    "complex": Case(layer(x=X + 0j), DtypeError,
        "batch_norm: input has dtype torch.complex64, expected float64, float32, float16 or bfloat16. Convert it "
        "first, for example input.float()."),
    "sparse": Case(layer(x=X.to_sparse()), DtypeError,
        "batch_norm: input is sparse or nested, expected a strided tensor."),
    "no tensor": Case(layer(x=X.tolist()), ArgumentError, "batch_norm: input is list, expected a tensor."),
    "eps": Case(layer(eps=0.0), ArgumentError,
        "batch_norm: eps is 0.0, expected a finite number above 0, such as 1e-5."),
    "momentum": Case(layer(momentum="fast"), ArgumentError,
        "batch_norm: momentum is 'fast', expected a finite number, or None for the average of all batches."),
    "residual's shape": Case(layer(residual=X[:1]), ShapeError,
        "batch_norm: residual has shape (1, 3, 2, 4), expected (4, 3, 2, 4), the shape of input.", torchs=False),
    "residual's dtype": Case(layer(residual=X.double()), DtypeError,
        "batch_norm: residual has dtype torch.float64, expected torch.float32, the dtype of input.", torchs=False),
    "residual": Case(layer(residual=0.0), ArgumentError,
        "batch_norm: residual is float, expected a tensor.", torchs=False),
    "mask": Case(layer(mask=torch.ones(4, 3, 2, 4)), ShapeError,
        "batch_norm: mask has shape (4, 3, 2, 4), expected one that broadcasts to (4, 1, 2, 4): input is (4, 3, 2, 4), "
        "and a mask has size 1 along the channels.", torchs=False),
    "nonfinite": Case(layer(x=X * math.nan, nonfinite="raise"), ArgumentError,
        "batch_norm: the batch has NaN or infinity, or a variance that overflows, in channels 0, 1, 2 of 3, and "
        'nonfinite="raise". The running statistics are unchanged.', torchs=False),
}  # fmt: skip

FUNCTION = {
    "no statistics": Case(call(X, None, None), ShapeError,
        "batch_norm: running_mean and running_var are needed when training=False, got None. Pass them, or "
        "training=True for the batch's own statistics."),
    "half of them": Case(call(X, torch.zeros(3), None, training=True), ArgumentError,
        "batch_norm: one of running_mean and running_var is None, expected both or neither."),
    "no tensor": Case(call(X.tolist(), None, None, training=True), ArgumentError,
        "batch_norm: input is list, expected a tensor."),
    "weight": Case(call(X, None, None, [1.0, 2.0, 3.0], training=True), ArgumentError,
        "batch_norm: weight is list, expected a tensor."),
    "weight's shape": Case(call(X, None, None, torch.ones(1, 3), training=True), ShapeError,
        "batch_norm: weight has shape (1, 3), expected (3,) to match dimension 1 of input (4, 3, 2, 4).", torchs=False),
    "weight's dtype": Case(call(X, None, None, torch.ones(3).long(), training=True), DtypeError,
        "batch_norm: weight has dtype torch.int64, expected a real floating-point one."),
    "whole statistics": Case(call(X, torch.zeros(3).long(), torch.ones(3).long(), training=True), DtypeError,
        "batch_norm: running_mean and running_var have dtypes torch.int64 and torch.int64, expected real "
        "floating-point ones."),
    "short statistics": Case(call(X, torch.zeros(2), torch.ones(2)), ShapeError,
        "batch_norm: running_mean has shape (2,), expected (3,) to match dimension 1 of input (4, 3, 2, 4)."),
    "momentum": Case(call(X, torch.zeros(3), torch.ones(3), training=True, momentum=None), ArgumentError,
        "batch_norm: momentum is None, expected a number: only a layer counts its batches."),
    "one dimension": Case(call(X.flatten(), None, None, training=True), ShapeError,
        "batch_norm: input has shape (96,), expected 2 dimensions or more, the second one the channels.",
        torchs=False),  # an IndexError there
    "activation": Case(call(X, None, None, training=True, activation="cubic"), ArgumentError,
        "batch_norm: activation is 'cubic', expected None, \"relu\", (\"leaky_relu\", slope) or \"silu\".",
        torchs=False),
    "correction": Case(call(X, None, None, training=True, correction=2), ArgumentError,
        "batch_norm: correction is 2, expected 0 (divide by m) or 1 (divide by m - 1).", torchs=False),
    "running correction": Case(
        call(X, torch.zeros(3), torch.ones(3), training=True, running_correction=5), ArgumentError,
        "batch_norm: running_correction is 5, expected 0 (divide by m) or 1 (divide by m - 1).", torchs=False),
    "running correction of no number": Case(
        call(X, torch.zeros(3), torch.ones(3), training=True, running_correction="1"), ArgumentError,
        "batch_norm: running_correction is '1', expected 0 (divide by m) or 1 (divide by m - 1).", torchs=False),
    "expanded statistics": Case(call(X, torch.zeros(3), torch.ones(1).expand(3), training=True), ArgumentError,
        "batch_norm: running_mean or running_var is expanded, expected a number in memory for each channel. "
        "Pass a contiguous copy.", torchs=False),
    "nonfinite": Case(call(X, None, None, training=True, nonfinite="ignore"), ArgumentError,
        "batch_norm: nonfinite is 'ignore', expected one of 'propagate', 'skip', 'raise'.", torchs=False),
}  # fmt: skip


def state(model: nn.Module) -> dict[str, Tensor]:
    """A copy of every parameter and buffer."""
    return {n: t.detach().clone() for n, t in (*model.named_parameters(), *model.named_buffers())}


@pytest.mark.parametrize("name", CASES)
def test_a_layer_says_what_is_wrong_and_changes_nothing(name: str) -> None:
    case = CASES[name]
    made: list[nn.Module] = []
    before: list[dict[str, Tensor]] = []

    def kind(*args: Any, **options: Any) -> Callable[..., Any]:
        made.append(xt.BatchNorm2d(*args, **options))
        before.append(state(made[0]))
        return made[0]

    with pytest.raises(case.error) as raised:
        case.call(kind, None)
    assert str(raised.value) == f"BatchNorm2d: {case.said}"
    after = state(made[0])
    assert all(torch.equal(after[n], value) for n, value in before[0].items())
    assert_torchs_class(raised.value, case, nn.BatchNorm2d, None)


@pytest.mark.parametrize("name", FUNCTION)
def test_the_function_says_what_is_wrong(name: str) -> None:
    case = FUNCTION[name]
    with pytest.raises(case.error) as raised:
        case.call(None, xt.batch_norm)
    assert str(raised.value) == case.said
    assert_torchs_class(raised.value, case, None, nn.functional.batch_norm)


def assert_torchs_class(error: XhatError, case: Case, kind: Any, function: Any) -> None:
    """Whoever catches torch's error catches ours: it is of the same class, and of a ValueError or TypeError."""
    assert isinstance(error, ValueError | TypeError)
    if case.torchs:
        with pytest.raises(Exception) as raised:  # noqa: PT011  # which one is the question
            case.call(kind, function)
        assert isinstance(error, type(raised.value)), type(raised.value)


@pytest.mark.parametrize("options", [
    {"correction": 2}, {"running_correction": -1}, {"activation": "tanh"}, {"activation": ("leaky_relu", -1)},
    {"nonfinite": "drop"}, {"num_features": -1},
], ids=str)  # fmt: skip
def test_a_layer_is_not_made_with_what_it_does_not_know(options: dict[str, Any]) -> None:
    kind = (
        RuntimeError if "num_features" in options else ArgumentError
    )  # torch's own: a tensor of negative size
    with pytest.raises(kind):
        xt.BatchNorm2d(**{"num_features": 3, **options})


def test_a_list_is_no_activation_wherever_it_is_given() -> None:
    """The same in the layer, on it and in a call: what is taken in one place would be missed in the others."""
    layer, pair = xt.BatchNorm2d(3), ["leaky_relu", 0.1]
    said = (
        r"activation is \['leaky_relu', 0.1\], expected None, \"relu\", \(\"leaky_relu\", slope\) or \"silu\""
    )
    with pytest.raises(ArgumentError, match=said):
        xt.BatchNorm2d(3, activation=pair)
    with pytest.raises(ArgumentError, match=said):
        layer(torch.ones(2, 3, 4, 4), activation=pair)
    layer.activation = pair
    with pytest.raises(ArgumentError, match=said):
        layer(torch.ones(2, 3, 4, 4))


# ------------------------------------------------------------------------------------------------- where it happened


class Net(nn.Module):
    """Layers in all kinds of places; the one that is asked for gets one value per channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = xt.BatchNorm1d(3)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Identity(), xt.BatchNorm1d(3)) for _ in range(2)])
        self.heads = nn.ModuleDict({"a": xt.BatchNorm1d(3, activation="relu")})
        self.tied = self.stem

    def forward(self, where: str) -> Tensor:
        """The layer or block at this place."""
        y: Tensor = self.get_submodule(where)(torch.zeros(1, 3))
        return y


@pytest.mark.parametrize(
    ("where", "path"),
    [("stem", "stem"), ("blocks.1", "blocks.1.1"), ("heads.a", "heads.a"), ("tied", "stem")],
)
def test_the_path_is_that_in_the_outermost_model(where: str, path: str) -> None:
    with pytest.raises(DegenerateBatchError, match=rf"^BatchNorm1d '{path}': batch_norm: Expected"):
        Net()(where)
    with pytest.raises(DegenerateBatchError, match=rf"^BatchNorm1d 'trunk.{path}': batch_norm: Expected"):
        Outer()(where)


class Outer(nn.Module):
    """A model in a model."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = Net()

    def forward(self, where: str) -> Tensor:
        """The inner model's."""
        y: Tensor = self.trunk(where)
        return y


def test_a_layer_alone_and_one_that_the_model_does_not_hold_have_no_path() -> None:
    class Borrowing(nn.Module):
        def forward(self, layer: nn.Module) -> None:
            layer(torch.zeros(1, 3))

    for run in (lambda: xt.BatchNorm1d(3)(torch.zeros(1, 3)), lambda: Borrowing()(xt.BatchNorm1d(3))):
        with pytest.raises(DegenerateBatchError, match=r"^BatchNorm1d: batch_norm: Expected"):
            run()


@pytest.mark.parametrize("reentrant", [True, False])
def test_the_path_within_a_checkpoint(reentrant: bool) -> None:
    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(xt.BatchNorm1d(3))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = checkpoint(self.block, x, use_reentrant=reentrant)
            return y

    with pytest.raises(DegenerateBatchError, match=r"^BatchNorm1d 'block.0': batch_norm: Expected"):
        Checkpointed()(torch.zeros(1, 3, requires_grad=True))


def test_the_path_in_a_fused_model() -> None:
    model, changes = xt.convert(nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.ReLU()))
    assert changes[0].fused == "relu"
    with pytest.raises(DegenerateBatchError, match=r"^BatchNorm1d '1': batch_norm: Expected"):
        model(torch.zeros(1, 3))


def test_a_lazy_layers_first_input_has_its_sentence_too() -> None:
    model = nn.Sequential(xt.LazyBatchNorm1d())
    with pytest.raises(DegenerateBatchError, match=r"^BatchNorm1d '0': batch_norm: Expected"):
        model(torch.zeros(1, 3))


def test_the_same_error_from_a_compiled_model() -> None:
    """With the path, where the layer runs outside of the graph; the sentence, in any case; and nothing has moved."""
    torch.compiler.reset()
    model = nn.Sequential(xt.BatchNorm1d(3))
    before = state(model)
    compiled = torch.compile(model, backend="aot_eager")
    with pytest.raises(Exception, match="Expected more than 1 value per channel when training"):
        compiled(torch.zeros(1, 3))
    assert all(torch.equal(value, before[name]) for name, value in state(model).items())


def test_tensors_on_another_device_change_nothing() -> None:
    """torch's own error: but not after the counter has moved."""
    for layer in (
        xt.BatchNorm1d(3),
        xt.BatchNorm1d(3, affine=False),
        xt.BatchNorm1d(3, affine=False, nonfinite="skip"),
    ):
        before = state(layer)
        with pytest.raises(RuntimeError):
            layer(torch.zeros(4, 3, device="meta"))
        assert all(torch.equal(value, before[name]) for name, value in state(layer).items())
