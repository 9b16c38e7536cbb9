"""The second gradient and the running average: right formulas are proved, and wrong ones are not."""

from typing import Any

import pytest

from xhat import equations
from xhat.lens.prover.second_proof import averages, second_gradient_holds


def test_the_second_gradient_is_proved() -> None:
    assert second_gradient_holds(equations.second_gradient_sums)


@pytest.mark.parametrize("wrong", range(5))
def test_each_of_its_terms_is_needed(wrong: int) -> None:
    def second(*args: Any, **terms: Any) -> tuple[Any, ...]:
        found = list(equations.second_gradient_sums(*args, **terms))
        found[wrong] = found[wrong] * 2
        return tuple(found)

    assert not second_gradient_holds(second)


def test_a_second_gradient_of_the_other_convention_is_refuted() -> None:
    def second(*args: Any, **terms: Any) -> tuple[Any, ...]:
        return equations.second_gradient_sums(*args, **{**terms, "correction": 0})

    assert not second_gradient_holds(second)


def test_track_keeps_the_average() -> None:
    assert averages(equations.track)
    assert not averages(lambda running, batch, weight: weight * running + (1 - weight) * batch)
