"""Code that is right on small contiguous batches, and wrong on longer channels, on strides, or in some of its calls."""

from typing import Any

import numpy as np
import pytest

from xhat.lens import check

BLOCK = 1024


def wide(values: Any, like: Any) -> Any:
    return values.reshape((1, -1) + (1,) * (like.ndim - 2))


def forward(x: Any, gamma: Any, beta: Any, eps: float = 1e-5) -> Any:
    axes = (0, *range(2, x.ndim))
    xhat = (x - wide(x.mean(axes), x)) / np.sqrt(wide(x.var(axes), x) + eps)
    rstd = 1 / np.sqrt(x.var(axes) + eps)
    return wide(gamma, x) * xhat + wide(beta, x), (xhat, rstd, gamma, x.size // x.shape[1])


def backward(dy: Any, cache: Any) -> Any:
    xhat, rstd, gamma, m = cache
    axes = (0, *range(2, dy.ndim))
    dgamma, dbeta = (dy * xhat).sum(axes), dy.sum(axes)
    return wide(gamma * rstd, dy) * (dy - wide(dbeta, dy) / m - xhat * wide(dgamma, dy) / m), dgamma, dbeta


def test_right_code_stays_right() -> None:
    assert check(forward, backward) and check(forward, backward, layout="NCHW")


def test_a_sum_that_ends_after_a_block_is_found() -> None:
    def short(dy: Any, cache: Any) -> Any:
        dx, dgamma, _ = backward(dy, cache)
        return dx, dgamma, np.moveaxis(dy, 1, 0).reshape(dy.shape[1], -1)[:, :BLOCK].sum(1)

    verdict = check(forward, short, layout="NC")
    assert verdict.unnamed == ("dbeta: wrong on 4097 values a channel, right on short ones",)
    assert [row.output for row in verdict.rows if row.right is False] == ["dbeta"]


def test_channels_beyond_the_32nd_are_looked_at() -> None:
    def narrow(dy: Any, cache: Any) -> Any:
        dx, dgamma, dbeta = backward(dy, cache)
        dgamma[32:] = 0
        return dx, dgamma, dbeta

    assert check(forward, narrow, layout="NC").unnamed == (
        "dgamma: wrong on 33 channels, right on short ones",
    )


def test_memory_that_is_taken_for_contiguous_is_found() -> None:
    def raw(x: Any) -> Any:
        return np.frombuffer(x.tobytes("A"), x.dtype).reshape(x.shape)

    verdict = check(lambda x, gamma, beta, eps: forward(raw(x), gamma, beta, eps)[0], layout="NCHW")
    assert verdict.unnamed == (
        "y: wrong on arrays with axes in another order in memory: their strides are ignored",
    )


def test_pytorch_arrays_have_strides_too() -> None:
    torch = pytest.importorskip("torch")

    def flat(x: Any, gamma: Any, beta: Any, eps: Any) -> Any:
        x = torch.as_strided(x, x.shape, torch.empty(x.shape).stride())
        return torch.nn.functional.batch_norm(x, None, None, gamma, beta, True, 0.1, eps)

    def loud(x: Any, gamma: Any, beta: Any, eps: Any) -> Any:
        y = (
            torch.nn.functional.batch_norm(x.view(-1), None, None)
            if False
            else x.view(x.numel()).view(x.shape)
        )
        return torch.nn.functional.batch_norm(y, None, None, gamma, beta, True, 0.1, eps)

    assert not check(flat, layout="NCHW")
    verdict = check(loud, layout="NCHW")  # an error is no wrong result
    assert verdict and any("in memory it does not run" in note for note in verdict.notes)


@pytest.mark.parametrize("every", [2, 3])
def test_calls_that_differ_are_found(every: int) -> None:
    calls = 0

    def sometimes(dy: Any, cache: Any) -> Any:
        nonlocal calls
        calls += 1
        dx, dgamma, dbeta = backward(dy, cache)
        return dx * (1 + 1e-15 * (calls % every == 0)), dgamma, dbeta

    (text,) = check(forward, sometimes, layout="NC").unnamed
    assert text == "dx: two calls with equal inputs differ: a race, or state that stays between calls"


def test_results_that_are_arguments_are_read_and_what_is_not_written_is_nan() -> None:
    def into(x: Any, gamma: Any, beta: Any, out: Any, eps: float = 1e-5) -> None:
        out[...] = forward(x, gamma, beta, eps)[0]

    def fill(dy: Any, x: Any, gamma: Any, mean: Any, rstd: Any, dx: Any, dgamma: Any, dbeta: Any) -> None:
        cache = (x - mean) * rstd, rstd, gamma, len(x)
        dx[...], dgamma[...], dbeta[...] = backward(dy, cache)

    def forget(dy: Any, x: Any, gamma: Any, mean: Any, rstd: Any, dx: Any, dgamma: Any, dbeta: Any) -> None:
        cache = (x - mean) * rstd, rstd, gamma, len(x)
        dx[:-1], dgamma[...], dbeta[...] = backward(dy, cache)[0][:-1], *backward(dy, cache)[1:]

    assert check(into, fill, layout="NC")
    verdict = check(into, forget, layout="NC")
    assert [row.output for row in verdict.rows if row.right is False] == ["dx"]
    assert "not finite" in verdict.headline


def test_thorough_finds_sums_in_16_bits() -> None:
    assert check(forward, backward, layout="NC")
    verdict = check(forward, backward, layout="NC", thorough=True)
    # NumPy adds rows of float16 in float16.
    assert "dbeta" in [row.output for row in verdict.rows if row.right is False]
    assert "in float16, whose sums belong in float32" in verdict.headline


def test_long_channels_in_16_bits_are_judged_only_where_they_were_asked_for() -> None:
    def narrow(dy: Any, cache: Any) -> Any:
        dx, dgamma, dbeta = backward(dy, cache)
        dgamma[32:] = 0
        return dx, dgamma, dbeta

    # NumPy adds rows of bfloat16 in bfloat16.
    assert check(forward, backward, layout="NC", dtype="bfloat16")
    verdict = check(forward, backward, layout="NC", dtype="bfloat16", thorough=True)
    assert "in bfloat16, whose sums belong in float32" in verdict.headline
    assert check(forward, narrow, layout="NC", dtype="bfloat16").unnamed == (
        "dgamma: wrong on 33 channels, right on short ones",
    )
