"""Models that are awkward are diagnosed, or refused in one sentence."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from pytorch.architectures import torchvision
from small import CHANNELS, batches, far_off, fitted, loss, net, snapshot, squared, taught
from torch import Tensor, nn
from torch.ao.quantization.quantize_fx import prepare_qat_fx
from torch.nn.utils import parametrizations

import xhat.torch as xt
from xhat.errors import ArgumentError


def diagnosed(model: Any, data: Any = None, *args: Any, **options: Any) -> xt.Diagnosis:
    before = snapshot(model) if isinstance(model, nn.Module) else None
    d = xt.diagnose(model, batches() if data is None else data, *args, progress=False, **options)
    assert before is None or snapshot(model) == before
    assert str(d)
    assert d.to_dict()["summary"]
    return d


@dataclass
class Output:
    """What a model of transformers returns."""

    logits: Tensor
    hidden: tuple[Tensor, ...]


class Nested(nn.Module):
    """Two inputs by name, and outputs in every kind of container."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.net, self.kind = net(), kind

    def forward(self, image: Tensor, scale: Tensor) -> Any:
        y = self.net(image * scale)
        return {
            "dict": {"logits": y, "aux": [y * 2, (y + 1, None)], "count": 3},
            "dataclass": Output(y, (y, y.sigmoid())),
            "ordered": OrderedDict(out=y),
        }[self.kind]


@pytest.mark.parametrize("kind", ["dict", "dataclass", "ordered"])
def test_several_inputs_and_outputs(kind: str) -> None:
    data = [{"image": x, "scale": torch.tensor(1.5)} for x, _ in batches()]
    d = diagnosed(Nested(kind), data)
    assert d.quantity == "distance"
    assert d.modes["evaluation"] == 0 and d.modes["batch"] > 0.01  # type: ignore[operator]
    far = diagnosed(Nested(kind), data, lambda output, batch: next(iter(output.values())).sum() if kind != "dataclass"
                    else output.logits.sum())  # fmt: skip
    assert far.quantity == "loss" and far.modes["evaluation"] is not None


def test_a_layer_that_is_called_several_times_and_one_that_is_never_called() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.never, self.twice, self.once = (nn.BatchNorm2d(CHANNELS) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = self.once(self.twice(x) + self.twice(3 * x + 4))
            return y

    d = diagnosed(Model(), None)
    assert [(row["layer"], row["calls"]) for row in d.layers] == [("twice", 2), ("once", 1), ("never", 0)]
    assert d.layers[2]["shift"] is None
    reused = next(f for f in d.findings if f.cause == "layer-used-more-than-once")
    assert reused.layers == ("twice",) and reused.severity == "risk"
    assert reused.evidence["spread"] == pytest.approx(3, abs=0.3)  # ((3 + 4) - 1) / 2 deviations


def test_a_model_without_batch_norm_is_healthy() -> None:
    model = nn.Sequential(
        nn.Conv2d(CHANNELS, 4, 3), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, track_running_stats=True)
    )
    d = diagnosed(model)
    assert d.healthy and d.layers == [] and d.findings == []
    assert d.summary == "Sequential has no batch norm: there is nothing to judge."


@pytest.mark.parametrize(
    ("layer", "sentence"),
    [
        (nn.LazyBatchNorm2d(), "diagnose: layer '0' is lazy and has met no input"),
        (
            nn.LazyConv2d(4, 3),
            "diagnose: '0.weight' is a lazy parameter without a shape. Call the model once",
        ),
        (
            nn.BatchNorm2d(CHANNELS, device="meta"),
            "diagnose: '0.weight' is on the meta device, without data.",
        ),
    ],
)
def test_a_model_that_cannot_run_is_refused_in_one_sentence(layer: nn.Module, sentence: str) -> None:
    with pytest.raises(ArgumentError, match=sentence.replace("(", r"\(")):
        xt.diagnose(nn.Sequential(layer), batches(), progress=False)


def test_wrappers_are_taken_off() -> None:
    plain = fitted(net(), batches())
    expected = [row["layer"] for row in diagnosed(plain).layers]
    compiled = torch.compile(plain, backend="eager")
    assert [row["layer"] for row in xt.diagnose(compiled, batches(), progress=False).layers] == expected
    inner = net()
    inner[4] = torch.compile(nn.Sequential(inner[4], nn.BatchNorm2d(5)), backend="eager")
    assert [row["calls"] for row in diagnosed(inner).layers] == [1, 1, 1]
    parallel = nn.DataParallel(plain)
    assert [row["layer"] for row in xt.diagnose(parallel, batches(), progress=False).layers] == expected


def test_a_model_that_was_compiled_in_place_and_has_run() -> None:
    model = fitted(net(), batches())
    data = taught(model, batches())
    far_off(model, "5")
    model.compile(backend="eager")
    model(data[0][0])
    d = xt.diagnose(model, data, squared, progress=False)
    assert d.findings[0].severity == "harmful" and d.findings[0].layers == ("5",)


def frozen_batch_norm(channels: int) -> nn.Module:
    layer: nn.Module = torchvision().ops.FrozenBatchNorm2d(channels)
    return layer


def test_frozen_layers_of_torchvision_are_seen_and_left() -> None:
    d = diagnosed(net(norm=frozen_batch_norm))
    assert [row["frozen"] for row in d.layers] == [True, True]
    assert all(f.severity != "harmful" for f in d.findings)
    assert d.layers[0]["shift"] > 0.01


def test_timm_with_an_activation_in_the_layer() -> None:
    torchvision()
    from timm.layers import BatchNormAct2d

    model = fitted(net(norm=BatchNormAct2d), batches())
    data = taught(model, batches())
    far_off(model, "1")
    d = diagnosed(model, data, squared)
    assert d.findings[0].severity == "harmful" and d.findings[0].layers == ("1",)
    assert d.findings[0].proof is not None and d.findings[0].proof.after < 1e-9


@pytest.mark.parametrize(
    "norm", [nn.SyncBatchNorm, xt.SyncBatchNorm, lambda c: nn.BatchNorm2d(c, affine=False)]
)
def test_other_batch_norms(norm: Any) -> None:
    model = fitted(net(norm=norm), batches())
    data = taught(model, batches())
    far_off(model, "5")
    d = diagnosed(model, data, squared)
    assert d.findings[0].severity == "harmful" and d.findings[0].layers == ("5",)


def test_parametrized_layers() -> None:
    model = net()
    parametrizations.weight_norm(model[1])
    parametrizations.spectral_norm(model[4])
    d = diagnosed(model.train(), None, loss)
    assert len(d.layers) == 2


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:Please use quant_min:UserWarning")
def test_quantisation_that_is_prepared() -> None:
    model = net().train()
    mapping = torch.ao.quantization.get_default_qat_qconfig_mapping("x86")
    prepared = prepare_qat_fx(model, mapping, (batches()[0][0],))
    prepared(batches()[0][0])
    assert len(diagnosed(prepared, None, loss).layers) == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("norm", [nn.BatchNorm2d, xt.BatchNorm2d])
def test_other_dtypes(norm: Any, dtype: torch.dtype) -> None:
    model = fitted(net(norm=norm).to(dtype), [(x.to(dtype), y) for x, y in batches()])
    data = taught(model, [(x.to(dtype), y) for x, y in batches()])
    far_off(model, "5")
    d = diagnosed(model, data, squared)
    assert d.findings[0].severity == "harmful" and d.findings[0].layers == ("5",)


def test_batches_of_one_sample_without_positions_are_not_judged_and_say_why() -> None:
    model = nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
    d = diagnosed(model.eval(), [torch.randn(1, 6) for _ in range(3)])
    assert d.modes["batch"] is None and d.modes["train"] is None and d.modes["pooled"] is None
    assert "one-value-per-channel" in [f.cause for f in d.findings]
    assert any("one value per channel in '1'" in why for _, why in d.not_judged)
    mixed = diagnosed(model, [torch.randn(n, 6) for n in (5, 1, 7)])
    assert mixed.modes["batch"] is not None and mixed.modes["pooled"] is not None


def test_batches_of_one_image_are_judged() -> None:
    d = diagnosed(net(), [x[:1] for x, _ in batches()])
    assert None not in d.modes.values()


def test_an_exported_program_in_training_mode_is_seen_and_proved() -> None:
    model = fitted(net(), batches())
    model[3].p = 0.0
    data = taught(model, batches(8, 3))
    program = torch.export.export(model.train(), (data[0][0],))
    for exported in (program, program.module()):
        d = xt.diagnose(exported, data, squared, progress=False)
        f = d.findings[0]
        assert (f.cause, f.severity, f.layers) == ("exported-in-train-mode", "harmful", ("1", "5"))
        assert f.proof is not None and f.proof.after < 1e-9 < f.proof.before
    healthy = torch.export.export(model.eval(), (data[0][0],))
    assert xt.diagnose(healthy, data, squared, progress=False).healthy


def test_layers_in_scripted_parts_are_left_out() -> None:
    with pytest.warns((DeprecationWarning, FutureWarning), match="torch.jit.script"):
        scripted = torch.jit.script(nn.Sequential(nn.BatchNorm2d(CHANNELS)))
    model = nn.Sequential(scripted, nn.BatchNorm2d(CHANNELS))
    d = xt.diagnose(model, batches(), progress=False)
    assert [row["layer"] for row in d.layers] == ["1"]


def test_layers_can_be_chosen() -> None:
    d = diagnosed(net(), None, loss, layers=["5"])
    assert [row["layer"] for row in d.layers] == ["5"]
    with pytest.raises(
        ArgumentError, match=r"diagnose: layers has '2', which is no batch norm of the model\. It has 1, 5\."
    ):
        xt.diagnose(net(), batches(), layers=["2"])


def test_a_model_that_counts_its_own_train_calls_keeps_its_layers_frozen_as_its_train_method_says() -> None:
    class Backbone(nn.Sequential):
        """Keeps its batch norms in evaluation mode, as many detectors do."""

        def train(self, mode: bool = True) -> "Backbone":
            super().train(mode)
            self[1].eval()
            return self

    torch.manual_seed(0)
    model = Backbone(*net()).train()
    d = diagnosed(model, None, loss)
    assert [row["frozen"] for row in d.layers] == [True, False]
    assert d.modes["train"] is not None


def test_a_model_of_lightnings_kind_is_called_by_forward() -> None:
    class Task(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = net()

        def forward(self, x: Tensor) -> Tensor:
            raise NotImplementedError

        def step(self, batch: Any) -> Tensor:
            y: Tensor = loss(self.backbone(batch[0]), batch)
            return y

    d = diagnosed(Task(), None, lambda output, batch: output, forward=lambda model, batch: model.step(batch))
    assert d.quantity == "loss" and None not in d.modes.values()
