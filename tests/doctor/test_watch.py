"""`xt.watch`: each fault that only shows over time is found by its numbers, and the model is left as it was."""

import copy
import io
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import xhat.torch as xt
from xhat.errors import ArgumentError

N, C = 16, 5


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


def network(kind=nn.BatchNorm2d, momentum=0.1):
    return nn.Sequential(
        nn.Conv2d(3, C, 3), kind(C, momentum=momentum), nn.ReLU(),
        nn.Conv2d(C, C, 3), kind(C, momentum=momentum), nn.Flatten(), nn.Linear(C * 4, 2),
    )  # fmt: skip


def batch(n=N):
    return torch.randn(n, 3, 6, 6)


class Loop:
    """A model, its optimizer, and the watch of both."""

    def __init__(self, model, with_optimizer=True, lr=0.01):
        self.model, self.optimizer = model, torch.optim.SGD(model.parameters(), lr=lr)
        self.watch = xt.watch(model, self.optimizer if with_optimizer else None)

    def step(self, x=None, call=None):
        self.optimizer.zero_grad()
        (call or self.model)(batch() if x is None else x).square().mean().backward()
        self.optimizer.step()

    def steps(self, count, **how):
        for _ in range(count):
            self.step(**how)

    def found(self):
        return {f.cause: f for f in self.watch.findings}


def hooks(loop):
    model = [h for m in loop.model.modules() for h in (*m._forward_pre_hooks, *m._forward_hooks)]
    return model + list(loop.optimizer._optimizer_step_post_hooks)


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


def test_a_watched_training_has_the_same_bits(kind):
    plain, watched = network(kind), None
    watched = copy.deepcopy(plain)
    xs = [batch() for _ in range(5)]
    a, b = Loop(plain), Loop(watched)
    for x in xs:
        a.step(x)
    with b.watch:
        for x in xs:
            b.step(x)
    for p, q in zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True):
        assert torch.equal(p, q)
    assert hooks(b) == []


def test_an_exception_is_passed_on_and_hooks_are_removed(with_optimizer):
    loop = Loop(network(), with_optimizer)

    def training():
        with loop.watch:
            assert len(hooks(loop)) == 4 + with_optimizer
            loop.steps(2)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        training()
    assert hooks(loop) == []
    assert loop.watch.steps == 2


def test_an_exception_in_the_model_does_not_leave_the_watch_inside_a_pass():
    loop = Loop(network())
    with loop.watch as w:
        with pytest.raises(RuntimeError):
            loop.model(torch.randn(2, 4, 6, 6))
        loop.model(batch()), loop.model[1](torch.randn(N, C, 4, 4))
    assert not {f.cause for f in w.findings} & {"layer-used-more-than-once"}


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
    with loop.watch:
        loop.model[1].eval()
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


def test_statistics_made_anew_on_purpose_are_no_finding():
    loop = Loop(network(xt.BatchNorm2d))
    with loop.watch:
        loop.steps(40)
        xt.recalibrate(loop.model, [batch(), batch()], progress=False)
        torch.optim.swa_utils.update_bn([batch(), batch()], loop.model)
        loop.model.train()
        loop.steps(2)
    assert loop.watch.findings == []


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("outside", [True, False])
def test_recomputed_passes_do_not_count(reentrant, outside, kind):
    class Inside(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = network(kind)

        def forward(self, x):
            return checkpoint(self.net, x, use_reentrant=reentrant)

    loop = Loop(network(kind) if outside else Inside())

    def call(x):
        x = x.requires_grad_()
        return checkpoint(loop.model, x, use_reentrant=reentrant) if outside else loop.model(x)

    with loop.watch:
        loop.steps(40, call=call)
    assert loop.watch.findings == []
    assert loop.watch.forwards == 40


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


def test_a_compiled_model_says_what_was_hidden(kind):
    model = torch.compile(network(kind), backend="aot_eager", fullgraph=True)
    loop = Loop(model)
    with loop.watch as w:
        loop.steps(30)
        assert [u.cause for u in w.diagnosis.not_judged] == ["layer-used-more-than-once"]
        assert w.findings == []
        model.eval()
        loop.steps(3)
    assert loop.found()["eval-mode-in-training"].evidence["in_evaluation"] == 3


def test_a_model_that_is_compiled_later_is_not_compiled_again():
    model = network()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    loop = Loop(model)
    loop.steps(1, call=compiled)
    with torch._dynamo.config.patch(error_on_recompile=True):
        with loop.watch:
            loop.steps(30, call=compiled)
        loop.steps(1, call=compiled)
    assert loop.watch.steps == 30 and loop.watch.findings == []


def test_a_loop_over_parts_says_what_was_hidden(with_optimizer):
    loop = Loop(network(), with_optimizer)
    with loop.watch:
        loop.steps(30, call=lambda x: loop.model[6](loop.model[:6](x)))
    hidden = {u.cause for u in loop.watch.diagnosis.not_judged}
    expected = {"layer-used-more-than-once", "train-mode-in-evaluation"}
    assert hidden == (expected if with_optimizer else expected | {"eval-mode-in-training"})


def test_copies_and_files_do_not_take_the_hooks_along():
    loop = Loop(network())
    with loop.watch:
        loop.steps(30)
        file = io.BytesIO()
        torch.save(loop.model, file)
        file.seek(0)
        for other in (copy.deepcopy(loop.model), torch.load(file, weights_only=False)):
            other(batch())
            assert all(h is not loop.watch.layers[0] for h in other[1]._forward_pre_hooks.values())
        assert loop.watch.forwards == 30
    assert loop.watch.findings == []


def test_watches_nest():
    loop = Loop(network())
    inner = xt.watch(loop.model[4])
    with loop.watch:
        with inner:
            loop.steps(30)
        assert len(hooks(loop)) == 5
    assert hooks(loop) == []
    assert (loop.watch.forwards, inner.forwards, len(inner.layers)) == (30, 30, 1)


def test_two_optimizers_that_step_after_one_pass_are_no_standstill():
    model = network()
    parts = [torch.optim.SGD(model[:3].parameters(), 0.1), torch.optim.SGD(model[3:].parameters(), 0.1)]
    with xt.watch(model, parts) as w:
        for _ in range(30):
            model(batch()).square().mean().backward()
            for optimizer in parts:
                optimizer.step()
            model.zero_grad()
    assert w.steps == 60 and w.findings == []


def test_a_lazy_layer_is_watched_once_it_is_made():
    model = nn.Sequential(nn.Conv2d(3, C, 3), nn.LazyBatchNorm2d())
    with xt.watch(model) as w:
        assert w.findings == []
        optimizer = None
        for _ in range(30):
            model(batch()).square().mean().backward()
            optimizer = optimizer or torch.optim.SGD(model.parameters(), 0.1)
            optimizer.step()
    assert w.findings == [] and w.steps == 30 and [row["channels"] for row in w.diagnosis.layers] == [C]


def test_the_findings_can_be_read_within_the_block_and_printed():
    loop = Loop(network(momentum=0.01))
    assert str(loop.watch) == "watch: not begun"
    with loop.watch as w:
        loop.steps(3)
        assert list(loop.found()) == ["statistics-not-converged"]
    shown = str(w)
    assert shown.startswith(
        "3 steps of Sequential: nothing harmful was seen in 2 batch norms; 1 other finding."
    )
    assert "\nrisk: statistics-not-converged\n" in shown
    assert w.diagnosis.to_dict()["findings"][0]["cause"] == "statistics-not-converged"


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: xt.watch(3), "watch: model is int, expected a torch.nn.Module."),
        (
            lambda: xt.watch(network(), "sgd"),
            "watch: optimizer is str, expected a torch.optim.Optimizer, several, or None.",
        ),
        (
            lambda: xt.watch(nn.ReLU()).__enter__(),
            "watch: the model has no batch norm whose running statistics can move, expected at least one.",
        ),
        (
            lambda: xt.watch(network().to("meta")).__enter__(),
            "watch: layer '1' is on the meta device, expected one with data. Load the model's weights first.",
        ),
    ],
)
def test_bad_input_is_one_sentence(make, sentence):
    with pytest.raises(ArgumentError) as raised:
        make()
    assert str(raised.value) == sentence


def test_a_watch_is_used_once():
    loop = Loop(network())
    with loop.watch as w:
        with pytest.raises(ArgumentError, match="has been used, expected a new one"):
            w.__enter__()
        loop.steps(1)
    with pytest.raises(ArgumentError, match="has been used"), w:
        pass
    assert w.steps == 1 and hooks(loop) == []
