"""Rounding: correct code passes in every dtype, and rounding mistakes are distinguished from wrong formulas."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from lens.checker import wrong
from lens.checker.specimens import closed

from xhat.lens import Adapter, check

forward, backward = closed.forward, closed.backward
ROUNDING = ("one-pass variance cancelling", "float16 accumulation")  # invisible in 16 bits


def test_rounding_mistakes_are_distinguished_from_wrong_formulas() -> None:
    def one_pass(x: Any, gamma: Any, beta: Any, eps: float) -> Any:
        var = (x * x).mean(0) - x.mean(0) ** 2
        return gamma * (x - x.mean(0)) / np.sqrt(var + eps) + beta

    def folded(x: Any, gamma: Any, beta: Any, eps: float) -> Any:
        scale = gamma / np.sqrt(x.var(0) + eps)
        return x * scale + (beta - x.mean(0) * scale)

    def single(x: Any, gamma: Any, beta: Any, eps: float) -> Any:
        return forward(x.astype(np.float32), gamma, beta, eps)[0].astype(np.float64)

    def half(x: Any, gamma: Any, beta: Any, eps: float) -> Any:
        return forward(x.astype(np.float16), gamma, beta, eps)[0].astype(np.float64)

    assert check(one_pass).names == {"one-pass variance cancelling"}
    assert check(one_pass, dtype="float32").names == {"one-pass variance cancelling"}
    assert [(row.output, row.right) for row in check(one_pass).rows] == [
        ("y", False)
    ]  # as the headline has it
    assert check(folded) and check(folded, dtype="float32")
    assert check(single).conventions["arrays"] == "numpy, float64 (float32 inside)"
    assert check(half).status == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_right_implementation_passes_in_few_digits(dtype: str) -> None:
    verdict = check(forward, backward, dtype=dtype)
    assert verdict, str(verdict)
    worst = max(row.error or 0.0 for row in verdict.rows)
    assert worst > float(ml_dtypes.finfo(dtype).eps) / 50  # it was computed in this dtype


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_wrong_implementation_fails_in_few_digits(dtype: str) -> None:
    def dropped(dout: Any, cache: Any) -> Any:
        dx, dgamma, dbeta = backward(dout, cache)
        return dx + cache[1] * cache[2] * dbeta / len(dout), dgamma, dbeta

    verdict = check(forward, dropped, dtype=dtype)
    assert verdict.status == 1 and verdict.names >= {"mean path dropped"}, str(verdict)


def test_float16_is_right_if_its_sums_are_wider() -> None:
    def wide(dout: Any, cache: Any) -> Any:
        return tuple(part.astype(np.float16) for part in backward(dout.astype(np.float32), cache))

    def narrow(x: Any, gamma: Any, beta: Any, eps: float) -> Any:
        mu = np.add.reduce(x, axis=0, dtype=np.float16) / np.float16(len(x))
        return forward(x - mu + 0 * x, gamma, beta, eps)[0]

    assert check(forward, wide, dtype="float16")
    assert check(narrow, dtype="float16").names == {"float16 accumulation"}


def test_pytorch_in_bfloat16() -> None:
    torch = pytest.importorskip("torch")

    def right(x, weight, bias, eps):  # type: ignore[no-untyped-def]
        mean, var = x.mean(0), x.var(0, unbiased=False)
        return weight * (x - mean) * torch.rsqrt(var + eps) + bias

    assert check(right, dtype="bfloat16")
    assert check(torch.nn.functional.batch_norm, adapter=Adapter(arrays="torch"), like="torch")


@pytest.mark.parametrize("name", [name for name in wrong.MISTAKES if name not in ROUNDING])
def test_a_mistake_is_named_in_bfloat16(name: str) -> None:
    """Its name is among the few names that fit so few digits."""
    text = wrong.edited((name,))
    assert text is not None
    verdict = check(*wrong.functions(text), dtype="bfloat16", like="torch")
    assert verdict.status == 1
    assert name in verdict.names and len(verdict.names) <= 3
