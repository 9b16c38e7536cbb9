"""The closed forms of `equations.py`, proved with weights, for every n (unless `method` differs) and every correction.

Each theorem has a formula in LaTeX and the function of `equations` that computes it. Both are compared with the
derivative itself (or with the definition) in the same domains that judge the source.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import sympy

from xhat import equations
from xhat.lens.prover.evaluate import Evaluator
from xhat.lens.prover.expressions import free_indices
from xhat.lens.prover.merge_proof import AVERAGED, averages, merge_holds
from xhat.lens.prover.parse import parse
from xhat.lens.prover.prove import PROVED, Side, decide, judge, left_side
from xhat.lens.prover.second_proof import SECOND, second_gradient_holds

__all__ = ["ANY_CORRECTION", "Theorem", "theorems"]

Value = Any

ANY_CORRECTION = sympy.Symbol("c", real=True)  # a proof for the symbol is a proof for 0 and for 1


@dataclass(frozen=True)
class Theorem:
    """A closed form that the code computes, with its proof.

    Attributes
    ----------
    id, claim : str
        Its name, and what it is.
    latex : str
        The formula.
    code : str
        The call of ``xhat.equations`` that computes it.
    verdict : str
        "holds" if formula and code are both proved.
    method : str
        How they were proved.
    """

    id: str
    claim: str
    latex: str
    code: str
    verdict: str
    method: str


@dataclass(frozen=True)
class _Form:
    claim: str
    latex: str
    code: str = ""
    call: Callable[[Evaluator], Value] | None = None


def _terms(evaluator: Evaluator, m: Value = None) -> Mapping[str, Value]:
    """The arguments of `equations.paths` and `input_gradient`, as symbols or numbers of a domain."""
    domain = evaluator.domain
    sum_dy, sum_dy_xhat = equations.gradient_sums(domain.dy, evaluator.xhat, domain.total)
    terms = {"dy": domain.dy, "xhat": evaluator.xhat, "sum_dy": sum_dy, "sum_dy_xhat": sum_dy_xhat}
    terms |= {"gamma": domain.gamma, "rstd": evaluator.rstd, "w": domain.w}
    return terms | {"m": domain.m if m is None else m, "correction": domain.correction}


def _root(exponent: str = "") -> str:
    return rf"\sqrt{{\sigma^2 + \epsilon}}{exponent}"


_DY = r"\frac{\partial L}{\partial y_i}"
_SUM_DY = r"\sum_{j=1}^N \frac{\partial L}{\partial y_j}"
_SUM_DY_XHAT = rf"{_SUM_DY} \hat{{x}}_j"
_SCALE = rf"\frac{{\gamma}}{{{_root()}}}"

_FORMS = {
    "moments-mean": _Form(
        "the mean, with weights",
        r"\mu = \frac{1}{m} \sum_{i=1}^N w_i x_i",
        "moments(x, total, m, w)[0]",
        lambda evaluator: evaluator.mean_of(evaluator.domain.x),
    ),
    "moments-m2": _Form(
        "the sum of squares about the mean",
        r"M_2 = \sum_{i=1}^N w_i (x_i - \mu)^2",
        "moments(x, total, m, w)[1]",
        lambda evaluator: equations.moments(
            evaluator.domain.x, evaluator.domain.total, evaluator.domain.m, evaluator.domain.w
        )[1],
    ),
    "variance": _Form(
        "the variance",
        r"\sigma^2 = \frac{1}{m - c} \sum_{i=1}^N w_i (x_i - \mu)^2",
        "variance(m2, m, correction)",
        lambda evaluator: evaluator.variance_of(evaluator.domain.x),
    ),
    "standardize": _Form(
        "the normalized value",
        rf"\hat{{x}}_i = \frac{{x_i - \mu}}{{{_root()}}}",
        "standardize(x, mu, reciprocal_std(var, eps, sqrt))",
        lambda evaluator: evaluator.xhat,
    ),
    "normalize": _Form(
        "the output",
        r"y_i = \gamma \hat{x}_i + \beta",
        "normalize(x, mu, rstd, gamma, beta)",
        lambda evaluator: evaluator.y,
    ),
    "sum-dy": _Form(
        "the gradient of beta",
        rf"\frac{{\partial L}}{{\partial \beta}} = {_SUM_DY}",
        "gradient_sums(dy, xhat, total)[0]",
        lambda evaluator: _terms(evaluator)["sum_dy"],
    ),
    "sum-dy-xhat": _Form(
        "the gradient of gamma",
        rf"\frac{{\partial L}}{{\partial \gamma}} = {_SUM_DY_XHAT}",
        "gradient_sums(dy, xhat, total)[1]",
        lambda evaluator: _terms(evaluator)["sum_dy_xhat"],
    ),
    "direct": _Form(
        "path 1: through xhat alone",
        rf"\frac{{\partial L}}{{\partial \hat{{x}}_i}} \cdot \frac{{\partial \hat{{x}}_i}}{{\partial x_i}}"
        rf" = {_SCALE} {_DY}",
        "paths(...).direct",
        lambda evaluator: equations.paths(**_terms(evaluator)).direct,
    ),
    "through-variance": _Form(
        "path 2: through the variance",
        r"\frac{\partial L}{\partial \sigma^2} \cdot \frac{\partial \sigma^2}{\partial x_i}"
        rf" = -{_SCALE} \cdot \frac{{w_i}}{{m - c}} \hat{{x}}_i {_SUM_DY_XHAT}",
        "paths(...).variance",
        lambda evaluator: equations.paths(**_terms(evaluator)).variance,
    ),
    "through-mean": _Form(
        "path 3: through the mean",
        r"\frac{\partial L}{\partial \mu} \cdot \frac{\partial \mu}{\partial x_i}"
        rf" = -{_SCALE} \cdot \frac{{w_i}}{{m}} {_SUM_DY}",
        "paths(...).mean",
        lambda evaluator: equations.paths(**_terms(evaluator)).mean,
    ),
    "input-gradient": _Form(
        "the gradient of the input: the sum of the three paths",
        rf"\frac{{\partial L}}{{\partial x_i}} = {_SCALE} \left({_DY} - \frac{{w_i}}{{m}} {_SUM_DY}"
        rf" - \frac{{w_i}}{{m - c}} \hat{{x}}_i {_SUM_DY_XHAT} \right)",
        "input_gradient(...)",
        lambda evaluator: equations.input_gradient(**_terms(evaluator)),
    ),
    "evaluation": _Form(
        "with fixed statistics (m infinite) only path 1 remains",
        rf"\frac{{\partial L}}{{\partial \hat{{x}}_i}} \cdot \frac{{\partial \hat{{x}}_i}}{{\partial x_i}}"
        rf" = {_SCALE} {_DY}",
        "input_gradient(..., m=inf)",
        lambda evaluator: equations.input_gradient(**_terms(evaluator, evaluator.domain.infinity)),
    ),
    "no-mean-left": _Form(
        "the gradient sums to 0, since a shift of the batch does not change the output",
        r"\sum_{i=1}^N \frac{\partial L}{\partial x_i} = 0",
    ),
    "no-xhat-left": _Form(
        "along xhat only the share eps / (var + eps) remains, since a scaling of the batch hardly changes the output",
        r"\sum_{i=1}^N \frac{\partial L}{\partial x_i} \hat{x}_i"
        rf" = \frac{{\epsilon}}{{\sigma^2 + \epsilon}} \cdot {_SCALE} {_SUM_DY_XHAT}",
    ),
}
_MERGE = _Form(
    "the moments of two batches, merged (Chan, Golub, LeVeque 1979)",
    r"m = m_a + m_b, \quad \mu = \mu_a + \delta \frac{m_b}{m}, \quad"
    r" M_2 = M_{2,a} + M_{2,b} + \delta^2 \frac{m_a m_b}{m}, \quad \delta = \mu_b - \mu_a",
    "merge(ma, mu_a, m2_a, mb, mu_b, m2_b)",
)
_SECOND = _Form(
    "the second gradient, for cotangents v of dx and a of dgamma: its gamma part is r q, its x part the input gradient"
    " of h with gamma r = 1 (r is rstd; s are the two gradient sums of dy, t those of w v)",
    r"h_i = A \frac{\partial L}{\partial y_i} + B w_i v_i, \quad"
    r" A = r \left(a - \gamma r \frac{t_1}{m - c}\right), \quad B = -\gamma r^2 \frac{s_1}{m - c}, \quad"
    r" q = \sum_{i=1}^N v_i \frac{\partial L}{\partial y_i} - \frac{s_0 t_0}{m} - \frac{s_1 t_1}{m - c}",
    "second_gradient_sums(sums, cosums, product, dgamma, ...)",
)
_TRACK = _Form(
    "a running statistic; with k = 1 / batches it is the average of all batches",
    r"r \leftarrow r + k (b - r)",
    "track(running, batch, weight)",
)


@cache
def theorems() -> tuple[Theorem, ...]:
    """Prove every closed form of the module ``xhat.equations``, which the kernels are tested against.

    It takes several seconds, and the result is kept. Needs SymPy and mpmath (the extra ``lens``).

    Returns
    -------
    tuple of Theorem
        One for each closed form: its ``id``, ``claim``, ``latex``, the ``code`` that computes it, and ``verdict``,
        which is "holds" if formula and code are both proved, by ``method``.

    Examples
    --------
    >>> import xhat.lens
    >>> {theorem.verdict for theorem in xhat.lens.theorems()}  # doctest: +SKIP
    {'holds'}
    """
    proved = [_prove(name, form) for name, form in _FORMS.items()]
    verdict = "holds" if merge_holds(equations.merge) else "wrong"
    merge = Theorem("merge", _MERGE.claim, _MERGE.latex, _MERGE.code, verdict, PROVED)
    second = "holds" if second_gradient_holds(equations.second_gradient_sums) else "wrong"
    average = "holds" if averages(equations.track) else "wrong"
    return (
        *proved,
        merge,
        Theorem("second", _SECOND.claim, _SECOND.latex, _SECOND.code, second, SECOND),
        Theorem("track", _TRACK.claim, _TRACK.latex, _TRACK.code, average, AVERAGED),
    )


def _prove(name: str, form: _Form) -> Theorem:
    (step,) = judge(form.latex, weighted=True, corrections=[ANY_CORRECTION])
    holds = step.verdict == "holds" and (form.call is None or code_holds(form.latex, form.call))
    return Theorem(name, form.claim, form.latex, form.code, "holds" if holds else "wrong", PROVED)


def code_holds(latex: str, call: Callable[[Evaluator], Value]) -> bool:
    """Whether the code equals the left side of the display, in every domain and for every correction."""
    left = parse(latex).left
    indices = free_indices(left)

    def code(evaluator: Evaluator, at: Mapping[str, Value]) -> Value:
        value = call(evaluator)
        return evaluator.domain.at(value, at[indices[0]]) if indices else value

    code_side: Side = code
    return decide(left_side(left), code_side, indices, correction=ANY_CORRECTION, weighted=True).holds
