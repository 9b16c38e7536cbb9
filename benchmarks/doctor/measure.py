"""What the doctor answers to the cases and to healthy models, and what it costs. No tables and no files."""

import copy
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import judging
import torch
from fitting import Case, cross_entropy, step
from healthy import Setting
from networks import residual
from torch import nn

import xhat.torch as xt

__all__ = ["CaseRow", "Cost", "HealthyRow", "cases", "cost_of_watch", "healthy_models", "passes"]


class CaseRow(NamedTuple):
    """The answer to one case with one seed; `fault` is empty if it is right."""

    name: str
    source: str
    seed: int
    cause: str
    severity: str
    first: str
    harmful: tuple[str, ...]
    beside: tuple[str, ...]
    proof: str
    fault: str


class HealthyRow(NamedTuple):
    """The answers to one healthy model in both modes, and the largest signals of its layers."""

    setting: Setting
    harmful: tuple[str, ...]
    beside: tuple[str, ...]
    evaluation: float | None
    pooled: float | None


class Cost(NamedTuple):
    """The least times of a plain and of a watched step, in seconds, and the median of the ratios of neighbours."""

    plain: float
    watched: float
    ratio: float


def cases(names: Iterable[str], seeds: Iterable[int]) -> Iterator[CaseRow]:
    """Each case with each seed."""
    for name in names:
        for seed in seeds:
            yield _answered(name, judging.load(name, seed), seed)


def _answered(name: str, case: Case, seed: int) -> CaseRow:
    answer = judging.ask(name, case, seed)
    worst = [f for f in answer.findings if f.severity == "harmful"] or answer.findings
    named = next((f for f in worst if f.cause == case.cause), worst[0] if worst else None)
    first = named if not answer.harmful else worst[0]
    return CaseRow(
        name,
        judging.source(name),
        seed,
        case.cause,
        case.severity,
        f"{first.cause} ({first.severity})" if first else "nothing",
        tuple(answer.harmful),
        tuple(f"{f.cause} ({f.severity})" for f in answer.findings if f is not first),
        str(first.proof or "") if first else "",
        judging.fault_of(case, answer),
    )


def healthy_models(models: Iterable[tuple[Setting, Case]]) -> Iterator[HealthyRow]:
    """Each model after its training, in evaluation and in training mode."""
    for setting, case in models:
        harmful, beside = set(), set()
        modes: dict[str, float | None] = {}
        for training in (True, False):
            case.model.train(training)
            answer = judging.diagnosed(case)
            harmful |= set(answer.harmful)
            beside |= {f.cause for f in answer.findings if f.severity != "harmful"}
            modes = answer.diagnosis.modes
        yield HealthyRow(
            setting, tuple(sorted(harmful)), tuple(sorted(beside)), modes["evaluation"], modes["pooled"]
        )


def passes(name: str) -> tuple[float, int]:
    """Forward passes a batch that a diagnosis of this case takes, and how many of them have one layer swapped."""
    case = judging.load(name)
    count = 0

    def counted(model: nn.Module, batch: Any) -> Any:
        nonlocal count
        count += 1
        return model(batch[0])

    diagnosis = judging.diagnosed(case._replace(forward=counted)).diagnosis
    swapped = sum(layer["repair"] is not None for layer in diagnosis.layers)
    return count / diagnosis.batches, swapped


def cost_of_watch(rounds: int, size: int = 128) -> Cost:
    """Steps of a ResNet-20 that alternate between a plain model and a watched copy of it."""
    torch.manual_seed(0)
    plain = residual(10, width=16, blocks=3)
    watched = copy.deepcopy(plain)
    batch = torch.randn(size, 3, 32, 32), torch.randint(10, (size,))
    first, second = (torch.optim.SGD(m.parameters(), 0.01, momentum=0.9) for m in (plain, watched))
    times: list[tuple[float, float]] = []
    with xt.watch(watched, second):
        for k in range(rounds + 2):
            pair = [
                _seconds(lambda: step(plain, first, batch, cross_entropy)),
                _seconds(lambda: step(watched, second, batch, cross_entropy)),
            ]
            if k >= 2:  # the first two allocate
                times.append((pair[0], pair[1]))
    ratios = sorted(b / a for a, b in times)
    return Cost(min(a for a, _ in times), min(b for _, b in times), ratios[len(ratios) // 2])


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
