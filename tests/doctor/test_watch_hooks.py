"""`xt.watch` leaves the model as it was, and names what it could not see."""

import copy
import io
from collections.abc import Iterator

import pytest
import torch
from loops import C, Loop, N, batch, hooks, network
from torch import nn
from torch.utils.checkpoint import checkpoint

import xhat.torch as xt
from xhat.errors import ArgumentError


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


def test_an_exception_in_the_model_ends_the_pass():
    """The layers are called in a pass that fails at the end, and one of them afterwards, outside of any pass."""
    loop = Loop(network())
    with loop.watch as w:
        with pytest.raises(RuntimeError):
            loop.model(torch.randn(N, 3, 7, 7))
        loop.model[1](torch.randn(N, C, 4, 4))
    assert [seen.most for seen in w.layers] == [1, 1]
    assert "layer-used-more-than-once" not in loop.found()


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
    assert [seen.calls for seen in loop.watch.layers] == [40, 40]


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


def test_a_layer_that_stands_still_in_a_compiled_model_is_found():
    model = network()
    model[1].eval()
    loop = Loop(torch.compile(model, backend="aot_eager", fullgraph=True))
    with loop.watch:
        loop.steps(30)
    (found,) = loop.watch.findings
    assert (found.cause, found.severity, found.layers) == ("eval-mode-in-training", "note", ("1",))


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


def test_the_loop_may_change_the_model():
    loop = Loop(network())
    with loop.watch as w:
        loop.steps(30)
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            setattr(loop.model[1], name, None)
        loop.model[1].track_running_stats = False
        loop.model.double()
        loop.steps(20, call=lambda x: loop.model(x.double()))
    assert w.findings == [] and [row["layer"] for row in w.diagnosis.layers] == ["4"]


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
