"""torch's private names: that each is there, and answers right inside and outside of what it is asked about.

Everything that must not be silently wrong hangs on these answers. With a new torch, begin here.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from beside import WARNS, X
from conftest import in_a_process
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.func import functionalize, grad, jvp, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from xhat.torch import internals

pytestmark = [WARNS, pytest.mark.filterwarnings("ignore:`torch.jit.trace")]

QUESTIONS: dict[str, Callable[[], bool]] = {
    "transforming": internals.transforming,
    "differentiating_forward": internals.differentiating_forward,
    "tracing": internals.tracing,
    "recomputing": internals.recomputing,
}


class Asked:
    """A function that asks every question whenever it runs."""

    def __init__(self) -> None:
        self.answers: list[set[str]] = []

    def __call__(self, x: Tensor) -> Tensor:
        """A scalar, for every transform to work on."""
        self.answers.append({name for name, ask in QUESTIONS.items() if ask()})
        return (x * x).sum()


def in_a_level(f: Asked) -> None:
    with forward_ad.dual_level():
        f(X)


class Quiet(TorchDispatchMode):
    """A mode that changes nothing."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


def in_modes(f: Asked) -> None:
    with FakeTensorMode() as mode:
        f(mode.from_tensor(X))
    with Quiet():
        f(X)


def checkpointed(reentrant: bool) -> Callable[[Asked], None]:
    return lambda f: checkpoint(f, X.clone().requires_grad_(), use_reentrant=reentrant).backward()


def hooked(f: Asked) -> None:
    """A hook of the backward pass that calls a layer: it is taken for a recomputation, see below."""
    x = X.clone().requires_grad_()
    x.register_hook(lambda g: f(g) * 0 + g)
    x.sum().backward()


def compiled(f: Asked) -> None:
    """Dynamo reads the function instead of running it, and takes each answer for a constant."""
    found: list[Tensor] = []

    def one(x: Tensor, name: str) -> Tensor:
        return x * 1.0 if QUESTIONS[name]() else x * 0.0

    for name in QUESTIONS:
        run = torch.compile(lambda x, name=name: one(x, name), fullgraph=True, backend="eager")
        found.append(run(torch.ones(())))
    f.answers.append({name for name, value in zip(QUESTIONS, found, strict=True) if value == 1})


PLACES: dict[str, tuple[Callable[[Asked], Any], list[set[str]]]] = {
    "nowhere": (lambda f: f(X), [set()]),
    "no_grad": (torch.no_grad()(lambda f: f(X)), [set()]),
    "an ordinary backward pass": (lambda f: f(X.clone().requires_grad_()).backward(), [set()]),
    "torch.func.grad": (lambda f: grad(f)(X), [{"transforming"}]),
    "torch.func.vmap": (lambda f: vmap(f)(X), [{"transforming"}]),
    "torch.func.jvp": (lambda f: jvp(f, (X,), (X,)), [{"transforming", "differentiating_forward"}]),
    "torch.func.functionalize": (lambda f: functionalize(f)(X), [{"transforming"}]),
    "a dual level": (in_a_level, [{"differentiating_forward"}]),
    "modes": (in_modes, [{"tracing"}, {"tracing"}]),
    "make_fx": (lambda f: make_fx(f)(X), [{"tracing"}]),
    "make_fx of a transform": (lambda f: make_fx(grad(f))(X), [{"tracing", "transforming"}]),
    "torch.jit.trace": (lambda f: torch.jit.trace(lambda x: f(x), (X,), check_trace=False), [{"tracing"}]),
    "torch.compile": (compiled, [{"tracing"}]),
    "reentrant checkpointing": (checkpointed(True), [set(), {"recomputing"}]),
    "checkpointing": (checkpointed(False), [set(), {"recomputing"}]),
    "a hook of the backward pass": (hooked, [{"recomputing"}]),
}


@pytest.mark.parametrize("place", PLACES)
def test_the_answers_inside(place: str) -> None:
    run, expected = PLACES[place]
    asked = Asked()
    run(asked)
    assert asked.answers == expected
    after = Asked()
    after(X)
    assert after.answers == [set()]


def test_a_trace_of_torch_fx_is_seen_by_its_proxies() -> None:
    """make_fx and torch.export use the same tracer, with tensors."""
    seen: list[bool] = []

    def f(x: Any) -> Any:
        seen.append(internals.symbolically_traced((x,), {"more": [x]}))
        return x * 2

    assert not internals.symbolically_traced(X)
    torch.fx.symbolic_trace(f)
    make_fx(f)(X)
    assert seen == [True, False]
    assert torch.equal(torch.compile(f, fullgraph=True, backend="eager")(X), X * 2)


def test_torch_export_is_told_from_torch_compile() -> None:
    class Module(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if internals.exporting() else x - 1

    for strict in (True, False):
        assert torch.equal(torch.export.export(Module(), (X,), strict=strict).module()(X), X + 1)
    assert torch.equal(torch.compile(Module(), fullgraph=True, backend="eager")(X), X - 1)
    assert not internals.exporting()


def test_graphs_for_other_tools() -> None:
    """torch.export's and torch.jit.trace's, and no others."""

    class Module(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if internals.for_other_tools() else x - 1

    graphs = [torch.export.export(Module(), (X,), strict=strict).module() for strict in (True, False)]
    graphs.append(torch.jit.trace(Module(), (X,), check_trace=False))
    assert all(torch.equal(graph(X), X + 1) for graph in graphs)
    for other in (make_fx(Module())(X), torch.compile(Module(), fullgraph=True, backend="eager"), Module()):
        assert torch.equal(other(X), X - 1)


def test_attributes_are_copied_by_torch_jit_trace() -> None:
    seen = []

    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.number = 0.5

        def __getattribute__(self, name: str) -> Any:
            if name == "number":
                seen.append(internals.copied_by_jit())
            return super().__getattribute__(name)

        def forward(self, x: Tensor) -> Tensor:
            return x + 1

    torch.jit.trace(Module(), (X,))
    assert seen and all(seen) and not internals.copied_by_jit()


def test_the_fusions_of_quantization() -> None:
    fuse = internals.FUSIONS_OF_QUANTIZATION[nn.Conv2d, nn.BatchNorm2d]
    fused = fuse(False, nn.Conv2d(3, 3, 1).eval(), nn.BatchNorm2d(3).eval())
    assert type(fused) is nn.Conv2d


def test_the_answers_in_an_exported_program() -> None:
    """Not strict, it runs the module; strict, it reads it."""

    class Module(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 1 if internals.tracing() and not internals.recomputing() else x - 1

    for strict in (True, False):
        assert torch.equal(torch.export.export(Module(), (X,), strict=strict).module()(X), X + 1)
    assert torch.equal(Module()(X), X - 1)


def test_the_answers_after_an_error() -> None:
    """No state of torch's stays behind."""

    def fails(x: Tensor) -> Tensor:
        raise ValueError("on purpose")

    for run in (lambda: grad(fails)(X), lambda: make_fx(fails)(X), lambda: jvp(fails, (X,), (X,))):
        with pytest.raises(ValueError, match="on purpose"):
            run()
    asked = Asked()
    asked(X)
    assert asked.answers == [set()]


# ------------------------------------------------------------------------------------------------------- of tensors


def test_plain() -> None:
    """Only what has its numbers at its address, and only if it is nothing more."""
    ordinary = [
        X,
        X.mT,
        X.clone().requires_grad_(),
        nn.Parameter(X),
        X[:, ::2],
        X.bfloat16(),
        X > 0,
        torch.empty(0),
    ]
    assert all(map(internals.plain, ordinary)) and internals.plain(*ordinary, None)

    class Subclass(Tensor):
        pass

    with FakeTensorMode() as mode:
        fake = mode.from_tensor(X)
    others = [X.to("meta"), X.as_subclass(Subclass), fake, X.to_sparse(),
              torch.complex(X, X).conj().imag]  # fmt: skip
    for t in others:
        assert not internals.plain(t) and not internals.plain(X, None, t)


def test_batched() -> None:
    """The vmap of is_grads_batched, which torch.func does not know of."""
    seen: list[tuple[bool, bool]] = []
    x = X.clone().requires_grad_()
    y = x * 1
    y.register_hook(lambda g: seen.append((internals.batched(g), internals.transforming())))
    torch.autograd.grad(y, x, torch.stack((X, X)), is_grads_batched=True)
    assert seen == [(True, False)]
    assert not internals.batched(X)


def test_tangents() -> None:
    assert not internals.tangents(X, None)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(X, X)
        assert internals.tangents(None, dual) and not internals.tangents(X, None)
    assert not internals.tangents(dual)


def test_unrecorded() -> None:
    """In torch.jit.trace, sizes are numbers again, and recording goes on afterwards."""

    def sized(x: Tensor) -> Tensor:
        assert isinstance(x.shape[0], Tensor)
        assert internals.unrecorded(lambda t: t.shape[0], x) == 4
        with pytest.raises(ValueError, match="on purpose"):
            internals.unrecorded(raising, x)
        return x.sin()

    def raising(x: Tensor) -> None:
        assert type(x.shape[0]) is int
        raise ValueError("on purpose")

    graph = torch.jit.trace(sized, (X,), check_trace=False)
    assert torch.equal(graph(X * 2), (X * 2).sin())
    assert internals.unrecorded(lambda t: t.shape[0], X) == 4


def test_constant() -> None:
    """The mark that torch's own decorator makes; and Dynamo, which could not read this function, takes its value."""

    @internals.constant
    def unreadable() -> float:
        return float(id(type("Another", (), {})) > 0)

    def plain() -> float:
        return 1.0

    assert vars(unreadable) == vars(torch.compiler.assume_constant_result(plain)) != {}
    compiled = torch.compile(lambda x: x * unreadable(), backend="eager", fullgraph=True)
    assert torch.equal(compiled(X), X)


def test_the_compiler_is_not_loaded_until_somebody_compiles() -> None:
    """It takes longer to load than torch itself."""
    loaded = "import sys, {0}; print('torch._dynamo' in sys.modules)"
    assert in_a_process(loaded.format("xhat.torch")) == "False\n"
    assert in_a_process(loaded.format("torch._dynamo")) == "True\n"
