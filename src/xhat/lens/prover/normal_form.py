"""Finite sums over a batch of symbolic size n, and their normal form.

Two expressions are equal for every n if their difference has the normal form 0. Only rules of finite sums are
applied: linearity, constant factors in front of the sum, sum(1) = n, and the collapse of a sum with a Kronecker delta.
Values of sums (a mean, a variance) are passed as `relations`.
"""

from collections.abc import Mapping

from sympy import Add, Dummy, Expr, KroneckerDelta, Mul, Pow, Sum, Symbol, cancel, expand, fraction, together

__all__ = ["POSITION", "atom", "normal", "total", "vanishes"]

# The index of a generic element: `total` sums over it.
POSITION = Symbol("p", integer=True, positive=True)
# The bound index of every sum in normal form.
_BOUND = Symbol("k", integer=True, positive=True)

Relations = Mapping[Expr, Expr]


def total(values: Expr, n: Expr, index: Symbol = POSITION) -> Expr:
    """The sum of `values` over index = 1 ... n."""
    bound = Dummy("k", integer=True, positive=True)
    return Sum(values.xreplace({index: bound}), (bound, 1, n))


def atom(values: Expr, n: Expr) -> Expr:
    """The sum of one monomial in normal form: the key of a relation."""
    return Sum(values.xreplace({POSITION: _BOUND}), (_BOUND, 1, n))


def normal(expression: Expr, relations: Relations | None = None) -> Expr:
    """The normal form: a polynomial in symbols, single values and sums of monomials."""
    return expand(_reduce(expression, relations or {}))


def vanishes(expression: Expr, relations: Relations | None = None) -> bool:
    """Whether the expression is 0 for every n, by its normal form over a common denominator."""
    reduced = normal(expression, relations)
    return bool(reduced == 0 or expand(fraction(together(reduced))[0]) == 0)


def _reduce(expression: Expr, relations: Relations) -> Expr:
    if isinstance(expression, Sum):
        body = expression.function
        for index, start, n in expression.limits:  # SymPy merges nested sums into one, the inner index first
            assert start == 1
            terms = Add.make_args(normal(body, relations))
            body = Add(*(_sum_of_term(term, index, n, relations) for term in terms))
        return body
    if isinstance(expression, Pow) and not expression.exp.is_integer:
        return cancel(normal(expression.base, relations)) ** expression.exp  # a root: simplify its base
    if expression.is_Atom or not expression.has(Sum):
        return expression
    return expression.func(*(_reduce(argument, relations) for argument in expression.args))


def _sum_of_term(term: Expr, index: Symbol, n: Expr, relations: Relations) -> Expr:
    """The sum of one product over index = 1 ... n."""
    factors = Mul.make_args(term)
    for factor in factors:
        base, exponent = factor.as_base_exp()
        if isinstance(base, KroneckerDelta) and index in base.free_symbols and exponent.is_positive:
            rest = Mul(*(other for other in factors if other is not factor))
            return _pick(base, rest, index, relations)
    constant = Mul(*(factor for factor in factors if index not in factor.free_symbols))
    dependent = Mul(*(factor for factor in factors if index in factor.free_symbols))
    if dependent == 1:
        return constant * n
    if dependent.has(Sum):  # an inseparable nested sum: unchanged, so that it equals nothing else
        return constant * Sum(dependent, (index, 1, n))
    monomial = Sum(dependent.xreplace({index: _BOUND}), (_BOUND, 1, n))
    return constant * relations.get(monomial, monomial)


def _pick(delta: KroneckerDelta, rest: Expr, index: Symbol, relations: Relations) -> Expr:
    """sum over index of delta(index, a) rest(index) = rest(a), with a between 1 and n."""
    other = next(argument for argument in delta.args if argument != index)
    return _reduce(rest.xreplace({index: other}), relations)
