"""What the structure and the numbers of a model show, each beside a model that does not have it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from small import CHANNELS, batches, fitted, loss, net, squared, taught
from torch import Tensor, nn

import xhat.torch as xt


def found(model: nn.Module, data: Any = None, *args: Any, **options: Any) -> dict[str, xt.Finding]:
    d = xt.diagnose(model, batches() if data is None else data, *args, progress=False, **options)
    return {finding.cause: finding for finding in d.findings}


def biased(bias: bool) -> nn.Module:
    return nn.Sequential(nn.Conv2d(CHANNELS, 4, 3, bias=bias), nn.BatchNorm2d(4))


def halves(channels: Tensor) -> nn.Module:
    layer = nn.BatchNorm2d(CHANNELS)
    layer.running_var.copy_(channels)  # type: ignore[union-attr]
    return nn.Sequential(layer)


class Scaled(nn.Module):
    """Multiplies channels, so that they are constant, or near eps."""

    def __init__(self, factors: list[float]) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(CHANNELS)
        self.bn.running_var.fill_(0)  # type: ignore[union-attr]
        self.register_buffer("factors", torch.tensor(factors)[:, None, None])

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn(x * self.factors)
        return y


@pytest.mark.parametrize(
    ("cause", "severity", "layers", "wrong", "right"),
    [
        ("bias-before-batch-norm", "note", ("1",), lambda: biased(True), lambda: biased(False)),
        ("range-of-float16", "risk", ("0",), lambda: halves(torch.tensor([1, 7e4, 1])),
         lambda: halves(torch.tensor([1, 6e4, 1]))),
        ("dead-channels", "risk", ("bn",), lambda: Scaled([1, 0, 1]), lambda: Scaled([1, 0.1, 1])),
        ("eps-dominates", "risk", ("bn",), lambda: Scaled([1e-3, 2e-3, 1]), lambda: Scaled([1e-1, 2e-1, 1])),
        ("train-mode-in-evaluation", "risk", ("0",),
         lambda: nn.Sequential(nn.BatchNorm2d(CHANNELS, track_running_stats=False)),
         lambda: nn.Sequential(nn.BatchNorm2d(CHANNELS))),
    ],
)  # fmt: skip
def test_what_a_layer_shows(
    cause: str,
    severity: str,
    layers: tuple[str, ...],
    wrong: Callable[[], nn.Module],
    right: Callable[[], nn.Module],
) -> None:
    finding = found(fitted(wrong(), batches()) if cause == "eps-dominates" else wrong())[cause]
    assert (finding.severity, finding.layers) == (severity, layers)
    assert cause not in found(fitted(right(), batches()) if cause == "eps-dominates" else right())


def test_weight_decay_on_gamma_needs_the_optimizer() -> None:
    model = net()
    d = xt.diagnose(model, batches(), progress=False)
    assert "decay-on-gamma" in [cause for cause, _ in d.not_judged]
    norms = [p for m in (model[1], model[5]) for p in m.parameters()]
    others = [p for p in model.parameters() if all(p is not q for q in norms)]
    decaying = torch.optim.SGD(model.parameters(), 0.1, weight_decay=1e-4)
    sparing = torch.optim.SGD(
        [{"params": norms, "weight_decay": 0}, {"params": others}], 0.1, weight_decay=1e-4
    )
    assert found(model, optimizer=decaying)["decay-on-gamma"].evidence["weight_decay"] == 1e-4
    assert "decay-on-gamma" not in found(model, optimizer=sparing)


def test_layers_that_stay_in_evaluation_or_move_while_frozen() -> None:
    held = net().train()
    held[1].eval()
    assert found(held)["eval-mode-in-training"].layers == ("1",)
    assert "eval-mode-in-training" not in found(net().train())
    moving = net().train()
    for p in moving[5].parameters():
        p.requires_grad = False
    assert found(moving)["frozen-but-moving"].layers == ("5",)
    moving[5].eval()
    assert "frozen-but-moving" not in found(moving)


def test_held_layers_whose_statistics_hurt_are_harmful() -> None:
    model = fitted(net(), batches(8))
    data = taught(model, batches(8))
    model.train()
    model[1].eval()
    model[1].running_mean.add_(9)
    finding = found(model, data, squared)["eval-mode-in-training"]
    assert (finding.severity, finding.layers) == ("harmful", ("1",))
    assert finding.proof is not None and finding.proof.after < 1e-9


def test_dropout_in_front_is_told_by_the_variance_that_it_makes() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Dropout(0.6), nn.BatchNorm2d(CHANNELS), nn.Flatten(), nn.Linear(60, 7))
    xs = [x * 0.2 + 3 for x, _ in batches(8, 32)]
    model[1].momentum = None
    model.train()
    for x in xs:
        model(x)
    model[1].momentum = 0.1
    model[1].num_batches_tracked.fill_(1000)
    good = nn.Sequential(*model[1:]).eval()
    kept = [t.clone() for t in (model[1].running_mean, model[1].running_var)]
    xt.recalibrate(good, xs, progress=False)
    data = taught(good, [(x, None) for x in xs])
    for t, value in zip((model[1].running_mean, model[1].running_var), kept, strict=True):
        t.copy_(value)
    finding = found(model.eval(), data, squared)["dropout-before-batch-norm"]
    assert finding.severity == "harmful" and finding.layers == ("1",)
    # E[(x/k)^2 k] - mean^2 = mean^2 (1/.4 - 1) + var / .4, over var = .16, with mean = 3.2
    assert finding.evidence["variance_ratio"] == pytest.approx((3.2**2 * 1.5 + 0.16 / 0.4) / 0.16, rel=0.05)


class Doubled(nn.BatchNorm2d):
    """A subclass with a forward of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, 4, 3)
        self.bn = Doubled(4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.bn(self.conv(x))
        return y


def test_a_subclass_that_lost_its_forward_is_named_and_proved() -> None:
    model = fitted(nn.Sequential(Block()), batches(8))
    data = taught(model, batches(8))
    assert "class-replaced" not in found(model, data, squared)
    replaced = nn.SyncBatchNorm.convert_sync_batchnorm(model).eval()
    finding = found(replaced, data, squared)["class-replaced"]
    assert (finding.severity, finding.layers) == ("harmful", ("0.bn",))
    assert finding.evidence["original"] == "Doubled"
    assert finding.proof is not None and finding.proof.after < 1e-9 < finding.proof.before


def test_every_finding_prints_where_what_why_and_remedy() -> None:
    model = net()
    for m in (model[1], model[5]):
        m.momentum = 0.0
    d = xt.diagnose(model, batches(), loss, progress=False)
    text = str(d).splitlines()
    for finding in d.findings:
        at = next(k for k, line in enumerate(text) if line.startswith(f"{finding.severity}: {finding.cause}"))
        assert [line.split()[0] for line in text[at + 1 : at + 5]] == ["where", "what", "why", "remedy"]
        assert finding.evidence and finding.symptom in text[at + 2]
        assert finding.code.splitlines()[0] in text[at + 4]


def test_every_cause_is_judged_or_said_not_to_be() -> None:
    """By a model that has nothing wrong: what stays silent was judged."""
    d = xt.diagnose(fitted(net(), batches(8)), batches(1), loss, progress=False)
    reasons = dict(d.not_judged)
    assert {"batches-not-alike", "batches-too-small", "ranks-differ", "missing-statistics", "decay-on-gamma",
            "eval-mode-in-training", "frozen-but-moving", "exported-in-train-mode"} <= set(reasons)  # fmt: skip
    assert set(reasons) <= set(xt.CAUSES) and all(reasons.values())
