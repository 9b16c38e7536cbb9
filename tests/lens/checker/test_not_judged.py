"""What did not run is never right: it is not judged, with the reason, and the exit status is 2."""

from typing import Any

import numpy as np
import pytest
from lens.checker.specimens import closed

from xhat.lens import Adapter, check
from xhat.lens.checker.verdict import Verdict

forward, backward = closed.forward, closed.backward


def unjudged(verdict: Verdict) -> dict[str, str]:
    assert (verdict.right, verdict.status, bool(verdict)) == (None, 2, False), str(verdict)
    return {row.output: row.why for row in verdict.rows if row.right is None}


def test_a_backward_that_raises_is_not_judged() -> None:
    def raising(dout: Any, cache: Any) -> Any:
        raise ValueError("too many values to unpack")

    verdict = check(forward, raising)
    why = "backward (raising) raised ValueError on x of shape (4, 3) (numpy, float64): too many values to unpack"
    assert unjudged(verdict) == {"dx": why, "dgamma": why, "dbeta": why}
    assert verdict.headline == f"forward and raising: y right; dx, dgamma, dbeta not judged: {why}."
    assert check(lambda x, gamma, beta, eps: (x, None), raising).status == 1


def test_a_backward_that_is_not_written_yet_is_not_judged() -> None:
    stub = unjudged(check(forward, lambda dout, cache: (None, None, None)))
    assert stub["dx"] == "backward returned None: not written yet."


def test_a_function_of_autograd_whose_backward_raises_is_not_judged() -> None:
    torch = pytest.importorskip("torch")

    class Raising(torch.autograd.Function):  # type: ignore[misc, name-defined]
        @staticmethod
        def forward(ctx: Any, x: Any, gamma: Any, beta: Any, eps: float = 1e-5) -> Any:
            return gamma * (x - x.mean(0)) * torch.rsqrt(x.var(0, unbiased=False) + eps) + beta

        @staticmethod
        def backward(ctx: Any, dy: Any) -> Any:
            (never_saved,) = ctx.saved_tensors
            return never_saved, None, None, None

    why = unjudged(check(Raising))["dx"]
    assert why.startswith("the backward of Raising raised ValueError: not enough values to unpack")


def test_a_cut_graph_is_not_judged() -> None:
    torch = pytest.importorskip("torch")

    def cut(x: Any, gamma: Any, beta: Any, eps: float = 1e-5) -> Any:
        with torch.no_grad():
            return gamma * (x - x.mean(0)) * torch.rsqrt(x.var(0, unbiased=False) + eps) + beta

    assert unjudged(check(cut))["dx"].startswith("no gradient flows from y to x: the graph is cut")


class Lazy:
    """A layer with mistakes, whose parameters come with the first call."""

    def __init__(self) -> None:
        self.gamma: Any = None

    def forward(self, x: Any) -> Any:
        if self.gamma is None:
            self.gamma, self.beta = np.ones(x.shape[1]), np.zeros(x.shape[1])
        return (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)


def test_parameters_are_set_after_the_call_that_makes_them() -> None:
    assert check(Lazy).names == {"gamma forgotten in the forward", "beta forgotten in the forward"}


class Resetting(Lazy):
    """A layer that makes its parameters at every call."""

    def forward(self, x: Any) -> Any:
        self.gamma = None
        return super().forward(x)


def test_a_parameter_that_the_call_replaces_is_not_judged() -> None:
    verdict = check(Resetting)
    assert verdict.status == 2
    assert verdict.problem == "gamma could not be set: the layer replaces gamma when it is called."


def test_parameters_of_unknown_names_are_found_by_their_effect_or_described() -> None:
    class Odd:
        def __init__(self) -> None:
            self.ready = False

        def forward(self, x: Any) -> Any:
            if not self.ready:
                self.first, self.second, self.ready = np.ones(x.shape[1]), np.zeros(x.shape[1]), True
            return self.second * (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) + self.first

    adapter = Adapter(names={"second": "gamma", "first": "beta"})
    assert check(Odd, adapter=adapter)
    assert check(Odd)


def test_a_layer_whose_gamma_is_not_found_is_not_judged() -> None:
    class Unclear:
        def __init__(self, dim: int) -> None:
            self.first, self.second = np.ones(dim), np.zeros(dim)

        def forward(self, x: Any) -> Any:
            return np.tanh(self.first * (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) + self.second)

    verdict = check(Unclear)
    assert verdict.status == 2
    assert str(verdict.problem).startswith("gamma could not be set: it may be first of Unclear")


def test_a_running_statistic_that_is_never_stored_is_wrong() -> None:
    def dropping(x: Any, gamma: Any, beta: Any, bn_param: Any) -> Any:
        mean, var = bn_param["running_mean"], bn_param["running_var"]
        if bn_param["mode"] == "train":
            mu, sigma2 = x.mean(0), x.var(0)
            mean, var = 0.9 * mean + 0.1 * mu, 0.9 * var + 0.1 * sigma2
        else:
            mu, sigma2 = mean, var
        return gamma * (x - mu) / np.sqrt(sigma2 + bn_param["eps"]) + beta

    verdict = check(dropping)
    assert verdict.names == {"running statistics never stored"}
    assert [row.output for row in verdict.rows if row.right is False] == ["running_mean", "running_var"]

    def without_a_mode(x: Any, gamma: Any, beta: Any, running_mean: Any, eps: float) -> Any:
        return forward(x, gamma, beta, eps)[0]

    why = unjudged(check(without_a_mode))
    assert why == {"running_mean": "it is given and never changed, and the code has no mode"}


def test_an_eps_that_is_given_is_never_searched_for() -> None:
    def other_eps(dout: Any, cache: Any) -> Any:
        xhat, gamma, var = cache
        inner = dout - dout.mean(0) - xhat * (dout * xhat).mean(0)
        return gamma / np.sqrt(var + 1e-8) * inner, (dout * xhat).sum(0), dout.sum(0)

    def taking(x: Any, gamma: Any, beta: Any, bn_param: Any) -> Any:
        y, (xhat, _, _) = forward(x, gamma, beta, bn_param.get("eps", 1e-5))
        return y, (xhat, gamma, x.var(0))

    verdict = check(taking, other_eps)
    assert verdict.names == {"another eps in the backward"}
    assert verdict.rows[1].why == "another eps in the backward: 1e-08"
    ignoring = check(lambda x, gamma, beta, eps: forward(x, gamma, beta, 1e-8)[0])
    assert ignoring.names == {"the eps given is ignored"}
    assert ignoring.rows[0].why == "the eps given is ignored: 1e-08 is in the code"
    assert ignoring.conventions["arrays"] == "numpy, float64"


def test_overwritten_arguments_are_noted() -> None:
    def scaling(dout: Any, cache: Any) -> Any:
        gradients = backward(dout, cache)
        dout *= 2
        return gradients

    verdict = check(forward, scaling)
    assert verdict and verdict.notes[0] == "backward (scaling) overwrites dy."


def test_the_plan_that_got_furthest_has_the_reason() -> None:
    def images_only(x: Any, gamma: Any, beta: Any) -> Any:
        rows = x.transpose(0, 2, 3, 1).reshape(-1, x.shape[1])
        return np.no_such_function(rows)  # type: ignore[attr-defined]

    problem = str(check(images_only).problem)
    assert "on x of shape (2, 3, 1, 4)" in problem and "no_such_function" in problem
