"""The second gradient: the right formula is proved, wrong ones are not."""

from typing import Any

import pytest

from xhat import equations
from xhat.lens.prover.second_proof import SIZES, second_gradient_holds


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_second_gradient_is_proved(n: int) -> None:
    """n = 3 takes most of the time of this folder, and is proved nowhere else."""
    assert second_gradient_holds(equations.second_gradient_sums, [n])
    assert SIZES == (1, 2)


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
