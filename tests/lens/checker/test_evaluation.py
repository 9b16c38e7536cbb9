"""Evaluation is judged as training is: which statistics, eps and its place, the root, gamma and beta."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lens.checker import wrong

from xhat.lens import check

SPECIMENS = Path(__file__).parent / "specimens"
RIGHT = "gamma * (x - running_mean) / np.sqrt(running_var + eps) + beta"
MISTAKES = {
    "eps missing in evaluation": "gamma * (x - running_mean) / np.sqrt(running_var) + beta",
    "eps outside the root in evaluation": "gamma * (x - running_mean) / (np.sqrt(running_var) + eps) + beta",
    "square root missing in evaluation": "gamma * (x - running_mean) / (running_var + eps) + beta",
    "power of rstd wrong in evaluation": "gamma * (x - running_mean) * np.sqrt(running_var + eps) + beta",
    "gamma forgotten in evaluation": "(x - running_mean) / np.sqrt(running_var + eps) + beta",
    "beta forgotten in evaluation": "gamma * (x - running_mean) / np.sqrt(running_var + eps)",
    "batch statistics used in evaluation": "gamma * (x - x.mean(0)) / np.sqrt(x.var(0) + eps) + beta",
    "running statistics updated in evaluation": (
        RIGHT + " + 0 * bn_param.update(running_mean=1.1 * running_mean) if False else "
        "(bn_param.update(running_mean=1.1 * running_mean), " + RIGHT + ")[1]"
    ),
}


def judged(*edits: str) -> Any:
    text = (SPECIMENS / "closed_form.py").read_text()
    assert text.count(RIGHT) == 1
    for edit in edits:
        text = text.replace(RIGHT, edit)
    return check(*wrong.functions(text))


def test_a_right_evaluation_passes() -> None:
    assert judged()
    assert [row.output for row in judged().rows][-1] == "y (evaluation)"


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_of_evaluation_is_named(name: str) -> None:
    verdict = judged(MISTAKES[name])
    assert verdict.names == {name} and not verdict.unnamed, str(verdict)
    assert {row.output for row in verdict.rows if row.right is False} <= {"y (evaluation)"}


def test_two_mistakes_of_evaluation_are_both_named() -> None:
    verdict = judged("(x - running_mean) / (np.sqrt(running_var) + eps) + beta")
    assert verdict.names == {"gamma forgotten in evaluation", "eps outside the root in evaluation"}


def test_an_unknown_evaluation_has_no_name() -> None:
    verdict = judged("gamma * (x - 0.9 * running_mean) / np.sqrt(running_var + eps) + beta")
    assert verdict.status == 1 and not verdict.mistakes
    assert verdict.unnamed[0].startswith("y (evaluation): can't name the mistake")


def test_an_evaluation_that_raises_is_not_judged() -> None:
    verdict = judged("int('no')")
    assert verdict.status == 2
    assert "ValueError" in verdict.rows[-1].why and verdict.rows[-1].output == "y (evaluation)"


def test_code_without_a_mode_is_told_so_and_stays_right() -> None:
    verdict = check(lambda x, gamma, beta, eps: gamma * (x - x.mean(0)) / np.sqrt(x.var(0) + eps) + beta)
    assert verdict and verdict.not_judged == ("evaluation (the code has no mode)",)


def test_gradients_of_evaluation_are_judged_where_they_are_automatic() -> None:
    torch = pytest.importorskip("torch")

    def function(statistics: Any) -> Any:
        def batch_norm(
            x: Any, gamma: Any, beta: Any, running_mean: Any, running_var: Any, training: bool
        ) -> Any:
            mean, var = x.mean(0), x.var(0, unbiased=False)
            if training:
                with torch.no_grad():
                    running_mean += 0.1 * (mean - running_mean)
                    running_var += 0.1 * (var - running_var)
            else:
                mean, var = statistics(mean, running_mean), running_var
            return gamma * (x - mean) * torch.rsqrt(var + 1e-5) + beta

        return batch_norm

    right = check(function(lambda mean, running: running))
    assert right and "dx (evaluation)" in {row.output for row in right.rows}
    leaking = check(function(lambda mean, running: running + 0.5 * (mean - mean.detach())))
    assert [row.output for row in leaking.rows if row.right is False] == ["dx (evaluation)"]
