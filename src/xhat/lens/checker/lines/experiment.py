"""The watched code, run again with some of its values replaced.

What a change of a value changes, and whether an output is right once a value is another one. Which values are tried,
and with what, is in `repair` and `blame`.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from xhat.lens.checker.calling.adapter import Unjudged
from xhat.lens.checker.calling.runner import Runner
from xhat.lens.checker.expected import reference
from xhat.lens.checker.expected.exact import Steps, steps_of
from xhat.lens.checker.expected.probes import Array, Probe
from xhat.lens.checker.formulas.powers import Scales, scales_of
from xhat.lens.checker.lines.values import Value, values_of
from xhat.lens.checker.lines.watch import Moment, Watch

__all__ = ["OUTPUTS", "Effect", "Experiment", "Outputs", "Plan"]

Plan = dict[Moment, Array]
Outputs = dict[str, Array]
OUTPUTS = {"y": "y", "dx": "dx", "dgamma": "Σ dy x̂", "dbeta": "Σ dy"}  # output -> the step that it should be
_RUNS, _SLOW_RUNS = 1500, 300  # replacements tried, at most; JAX compiles every operation for itself


class Effect(NamedTuple):
    """What follows from a value: outputs, whether an exact value or a right output is among them, and how much.

    `slopes` has for each batch and output the change of the output by a change of the value by itself.
    """

    outputs: set[str]
    cleared: bool
    slopes: list[Outputs]


@dataclass
class Experiment:
    """The watched code on several batches, what it computes, and the repairs that are in force."""

    runner: Runner
    watch: Watch
    batch: tuple[Probe, ...]
    correction: int
    tolerance: float
    wrong: set[str]  # outputs
    right: set[str] = field(default_factory=set)
    plain: list[Outputs] = field(default_factory=list)  # the outputs with the repairs in force
    values: list[Value] = field(default_factory=list)
    repairs: list[Plan] = field(default_factory=list)
    left: int = 0  # runs

    def __post_init__(self) -> None:
        self.left = _SLOW_RUNS if self.runner.spec.kind == "jax" else _RUNS
        self.repairs = [{} for _ in self.batch]
        self.steps: list[Steps] = [steps_of(p, self.correction) for p in self.batch]
        forwards = [reference.forward(p, self.correction) for p in self.batch]
        self.scales: Scales = scales_of(list(zip(self.batch, forwards, strict=True)), self.correction)
        self.exact = [{o: (s.whole | s.by_channel)[n] for o, n in OUTPUTS.items()} for s in self.steps]

    def observe(self) -> str | None:
        """Run the code on all batches, and recognize what it computes. A sentence if it can't be seen."""
        seen, self.plain = [], []
        for k in range(len(self.batch)):
            outputs = self.run(k, {}, recording=True)
            if outputs is None:
                return "The code fails while its values are watched, so no line of it was examined."
            self.plain.append(outputs)
            seen.append(self.watch.seen())
        if self.watch.overflowed:
            return "The code computes too many values one by one for its lines to be examined."
        if not seen[0]:
            return (
                "The lines of the code run inside of a compiled function, where their values can't be seen."
            )
        right = [self.exact_outputs(k, o) for k, o in enumerate(self.plain)]
        self.right = set.intersection(*right)
        self.wrong = self.wrong - self.right
        self.values = values_of(seen, self.watch.sites, self.steps, self.tolerance)
        return None

    def run(self, k: int, plan: Plan, recording: bool = False) -> Outputs | None:
        """The outputs on batch k with the repairs in force and this plan; None if the code fails with it."""
        self.left -= 1
        self.watch.records.clear()
        self.watch.plan, self.watch.recording = self.repairs[k] | plan, recording
        try:
            return self.runner.run(self.batch[k], self.correction).outputs
        except (Unjudged, FloatingPointError):
            return None
        finally:
            self.watch.plan, self.watch.recording = {}, True

    def exact_outputs(self, k: int, outputs: Outputs | None) -> set[str]:
        """The outputs that are exact on batch k."""
        found = set()
        for o, exact in self.exact[k].items():
            if outputs is not None and o in outputs and outputs[o].size == exact.size:
                error = np.abs(outputs[o].reshape(exact.shape) - exact).max()
                if error <= 10 * self.tolerance * max(1.0, np.abs(exact).max()):
                    found.add(o)
        return found

    def repaired(self, value: Value, numbers: list[Array]) -> list[Plan]:
        """The plans, if with these numbers a wrong output is right, and right ones stay so; else an empty list."""
        for way in range(max(1, len(value.arranged[0]))):
            plans: list[Plan] = []
            for k in range(len(self.batch)):
                if value.arranged[k] and way >= len(value.arranged[k]):
                    break
                plan = value.plan(k, numbers[k], way)
                now = self.exact_outputs(k, self.run(k, plan))
                if not (now & self.wrong and self.right <= now):
                    break
                plans.append(plan)
            if len(plans) == len(self.batch):
                return plans
        return []

    def effect(self, value: Value) -> Effect:
        """Half of the value is added to it. (A change of one element would move sums that a wrong factor does not.)"""
        found = Effect(set(), False, [])
        for k, base in enumerate(self.plain):
            raw = value.raw[k]
            more = raw * 1.5 if np.abs(raw).max() > 1e-9 else raw + 1.0
            changed = self.run(k, value.plan_of(k, more), recording=k == 0)
            if changed is None or any(o not in changed or changed[o].shape != base[o].shape for o in base):
                return found
            if k == 0:
                outputs = {o for o in base if self.moved(changed[o], base[o])}
                found = Effect(outputs, bool(outputs & self.right) or self._clears(value), [])
            found.slopes.append({o: 2 * (changed[o] - base[o]) for o in found.outputs})
        return found

    def moved(self, a: Array, b: Array) -> bool:
        """Whether two arrays differ by more than rounding."""
        size = max(1e-300, float(np.abs(b).max()))
        return a.shape != b.shape or bool(np.abs(a - b).max() > 100 * self.tolerance * size)

    def _clears(self, value: Value) -> bool:
        """Whether a later exact value changed in the run that was recorded last."""
        seen = self.watch.seen()
        for later in self.values[self.values.index(value) + 1 :]:
            if later.names and later.is_array and later.site.role != "addend":
                for moment, old in later.moments_with_values(0):
                    if moment in seen and self.moved(seen[moment], old):
                        return True
        return False
