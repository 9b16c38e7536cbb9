"""`xt.watch`: each fault that only shows over time is found by its numbers."""

from collections.abc import Iterator

import pytest
import torch
from loops import C, Loop, batch, network
from torch import Tensor, nn

import xhat.torch as xt


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


@pytest.fixture(params=[nn.BatchNorm2d, xt.BatchNorm2d], ids=["torch", "xhat"])
def kind(request):
    return request.param


@pytest.fixture(params=[True, False], ids=["optimizer", "no optimizer"])
def with_optimizer(request):
    return request.param


def test_a_healthy_training_with_validation_has_no_finding(kind, with_optimizer):
    loop = Loop(network(kind), with_optimizer)
    with loop.watch as w:
        for _ in range(3):
            loop.model.train()
            loop.steps(20)
            loop.model.eval()
            with torch.no_grad():
                loop.model(batch())
    assert w.findings == [] and w.diagnosis.not_judged == [] and w.diagnosis.healthy
    assert w.steps == 60


def test_evaluation_that_is_never_undone_is_found_with_its_step(kind, with_optimizer):
    loop = Loop(network(kind), with_optimizer)
    with loop.watch:
        loop.steps(30)
        loop.model.eval()
        with torch.no_grad():
            loop.model(batch())
        loop.steps(20)
    found = loop.found()["eval-mode-in-training"]
    assert found.evidence == {"steps": 50, "in_evaluation": 20, "from": 31}
    assert set(found.layers) == {"1", "4"}
    assert found.symptom == (
        "The model was in evaluation mode in 20 of 50 steps, from step 31 to the end, while its weights moved."
    )


def test_evaluation_that_is_undone_an_epoch_later_is_found(kind, with_optimizer):
    loop = Loop(network(kind), with_optimizer)
    with loop.watch:
        for _ in range(8):
            loop.model.train()
            loop.steps(5)
            loop.model.eval()
            loop.steps(3)
        loop.model.train()
        loop.steps(2)
    found = loop.found()["eval-mode-in-training"]
    assert found.evidence["in_evaluation"] == 24 and found.evidence["steps"] == 66
    assert "training mode again" in found.symptom


def test_layers_that_stop_in_a_model_that_trains_are_a_risk_and_those_that_never_moved_a_note(with_optimizer):
    loop = Loop(network(), with_optimizer)
    loop.model[1].eval()
    with loop.watch:
        loop.steps(30)
        loop.model[4].eval()
        loop.steps(10)
    found = [(f.cause, f.severity, f.layers, f.evidence["stood"]) for f in loop.watch.findings]
    assert found == [
        ("eval-mode-in-training", "risk", ("4",), 10),
        ("eval-mode-in-training", "note", ("1",), 40),
    ]


def test_a_layer_that_is_frozen_in_both_ways_is_no_finding():
    model = network(xt.BatchNorm2d)
    loop = Loop(model)
    xt.freeze(model[1])
    model[4].requires_grad_(False).eval()
    model.append(nn.BatchNorm1d(2))
    with loop.watch:
        loop.steps(40)
    assert loop.watch.findings == []


def test_frozen_parameters_with_moving_statistics_are_found(kind, with_optimizer):
    model = network(kind)
    model[:2].requires_grad_(False)
    loop = Loop(model, with_optimizer)
    with loop.watch:
        loop.steps(40)
    assert list(loop.found()) == ["frozen-but-moving"]
    found = loop.found()["frozen-but-moving"]
    assert found.layers == ("1",) and found.evidence == {"steps": 40, "moved": 40}


def test_a_probe_without_gradients_in_training_mode_is_found(kind, with_optimizer):
    loop = Loop(network(kind), with_optimizer)
    with loop.watch:
        with torch.no_grad():
            loop.model(torch.zeros(2, 3, 6, 6))
        loop.steps(40)
    assert list(loop.found()) == ["train-mode-in-evaluation"]
    assert loop.found()["train-mode-in-evaluation"].evidence == {"passes": 1}


def test_a_pass_without_gradients_in_each_step_is_a_note():
    """As the generator's in a step of the discriminator: it is meant so."""
    loop = Loop(network())
    with loop.watch:
        for _ in range(40):
            with torch.no_grad():
                loop.model(batch())
            loop.step()
    (found,) = loop.watch.findings
    assert (found.cause, found.severity, found.evidence) == (
        "train-mode-in-evaluation",
        "note",
        {"passes": 40},
    )


def test_statistics_made_anew_on_purpose_are_no_finding():
    loop = Loop(network(xt.BatchNorm2d))
    with loop.watch:
        loop.steps(40)
        xt.recalibrate(loop.model, [batch(), batch()], progress=False)
        torch.optim.swa_utils.update_bn([batch(), batch()], loop.model)
        loop.model.train()
        loop.steps(2)
    assert loop.watch.findings == []


def test_the_first_layer_that_is_not_finite_is_named_with_its_step(kind, with_optimizer):
    """The input of the second layer becomes infinite; one step later, all layers are."""
    loop = Loop(network(kind), with_optimizer)
    with loop.watch:
        loop.steps(37)
        with torch.no_grad():
            loop.model[3].weight[0] = float("inf")
        loop.steps(6)
    (found,) = (f for f in loop.watch.findings if f.severity == "harmful")
    assert found.cause == "statistics-not-finite" and not loop.watch.diagnosis.healthy
    assert found.evidence == {"step": 38, "first": "4", "statistics": True}


def test_the_first_layer_is_the_first_one_called_not_the_first_one_made():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.first = nn.BatchNorm1d(4), nn.BatchNorm1d(4)

        def forward(self, x):
            return self.last(self.first(x))

    loop = Loop(Backwards())
    x = torch.randn(8, 4)
    x[0, 0] = torch.inf
    with loop.watch:
        loop.step(torch.randn(8, 4))
        loop.model(x)  # the loop ends before another step
    (found,) = (f for f in loop.watch.findings if f.severity == "harmful")
    assert found.evidence["first"] == "first" and found.evidence["step"] == 2


def test_a_gradient_that_is_not_finite_is_told_from_an_input_that_is_not():
    loop = Loop(network())
    with loop.watch:
        loop.steps(4)
        loop.step(call=lambda x: loop.model(x) * float("nan"))
    (found,) = (f for f in loop.watch.findings if f.severity == "harmful")
    assert found.evidence == {"step": 5, "first": "1", "statistics": False}


def test_a_layer_that_is_called_twice_in_a_pass_is_found(kind, with_optimizer):
    class Siamese(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.norm = network(kind)[:5], nn.BatchNorm1d(C * 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm((self.body(x) + self.body(-x)).flatten(1))

    loop = Loop(Siamese(), with_optimizer)
    with loop.watch:
        loop.steps(40)
    assert list(loop.found()) == ["layer-used-more-than-once"]
    found = loop.found()["layer-used-more-than-once"]
    assert found.layers == ("body.1", "body.4")
    assert found.evidence == {"calls": 2, "passes": 40, "forwards": 40}


def test_a_momentum_of_zero_is_found(kind):
    loop = Loop(network(kind, momentum=0))
    with loop.watch:
        loop.steps(3)
    assert loop.found()["momentum"].layers == ("1", "4")


def test_too_few_steps_for_the_momentum_are_counted(kind):
    """0.98^40 = .446 is left; 0.98^149 = .0493 is the first below .05."""
    loop = Loop(network(kind, momentum=0.02))
    with loop.watch:
        loop.steps(40)
    evidence = loop.found()["statistics-not-converged"].evidence
    assert evidence["left"] == pytest.approx(0.98**40)
    assert 0.98 ** evidence["needed"] < 0.05 < 0.98 ** (evidence["needed"] - 1)


def test_statistics_that_trail_the_weights_are_found_by_their_distance(kind):
    """The mean moves by .02 a step. With momentum .01 the average is 99 steps behind, the latest ten batches 4.4."""
    norm = kind(3, momentum=0.01)
    norm.num_batches_tracked += 1000
    loop = Loop(nn.Sequential(norm))
    with loop.watch:
        for step in range(605):
            loop.step(torch.randn(256, 3, 4, 4) + 0.02 * step)
    assert list(loop.found()) == ["statistics-of-other-weights"]
    evidence = loop.found()["statistics-of-other-weights"].evidence
    weights = [0.99**i for i in range(10)]
    behind = sum(i * w for i, w in enumerate(weights)) / sum(weights)
    assert evidence["step"] == 600
    assert evidence["mean"] == pytest.approx(0.02 * (99 - behind), abs=0.03)
    assert evidence["log_variance"] == pytest.approx(0, abs=0.03)


def test_a_jump_is_forgotten():
    norm = nn.BatchNorm2d(3)
    loop = Loop(nn.Sequential(norm))
    with loop.watch:
        for step in range(60):
            loop.step(torch.randn(64, 3, 4, 4) + 3 * (step >= 33))
    assert loop.watch.findings == []
