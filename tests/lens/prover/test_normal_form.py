"""The normal form of finite sums has the value of the sum, written out for small n."""

import pytest
import sympy
from sympy import KroneckerDelta

from xhat.lens.prover import normal_form

n = sympy.Symbol("n", integer=True, positive=True)
i = sympy.Symbol("i", integer=True, positive=True)
a, b = sympy.symbols("a b", positive=True)
p = normal_form.POSITION
x, y = sympy.IndexedBase("x"), sympy.IndexedBase("y")


def total(values):
    return normal_form.total(sympy.sympify(values), n)


def written_out(expression, size):
    """The expression for one n and one i, with every sum written out by SymPy."""
    return sympy.expand(expression.subs({n: size, i: size - 1}).doit())


SUMS = {
    "ones": total(1),
    "a constant": total(a / b),
    "linear": total(a * x[p] + b),
    "a square": total((x[p] - a) ** 2),
    "a sum inside": total((x[p] - total(x[p]) / n) ** 2),
    "two sums": total(x[p]) * total(x[p] * y[p]),
    "a sum of a sum": total(total(x[p]) * y[p]),
    "a delta": total(KroneckerDelta(p, i) * x[p] * y[p]),
    "a delta squared": total(KroneckerDelta(p, i) ** 2 * x[p]),
    "a delta from a derivative": total(x[p] ** 2 * y[p]).diff(x[i]),
    "a derivative through a sum inside": total((x[p] - total(x[p]) / n) ** 2 * y[p]).diff(x[i]),
    "a delta and a sum inside": total(KroneckerDelta(p, i) * total(x[p]) * y[p]),
    "under a root": 1 / sympy.sqrt(total(x[p] * a) + b),
}


@pytest.mark.parametrize("name", SUMS)
def test_the_normal_form_has_the_same_value(name):
    reduced = normal_form.normal(SUMS[name])
    for size in (2, 3, 5):
        difference = written_out(SUMS[name], size) - written_out(reduced, size)
        assert sympy.simplify(difference) == 0


@pytest.mark.parametrize("name", SUMS)
def test_the_normal_form_is_normal(name):
    reduced = normal_form.normal(SUMS[name])
    assert normal_form.normal(reduced) == reduced
    for part in reduced.atoms(sympy.Sum):
        assert part == normal_form.atom(part.function.xreplace({part.limits[0][0]: p}), n)
        assert not part.function.has(sympy.Add, KroneckerDelta, a, b)


def test_sums_that_differ_do_not_vanish():
    assert normal_form.vanishes(total(x[p] - a) - total(x[p]) + n * a)
    assert not normal_form.vanishes(total(x[p] - a) - total(x[p]) - n * a)
    assert not normal_form.vanishes(total(x[p] ** 2) - total(x[p]) ** 2)
    assert not normal_form.vanishes(total(x[p] * y[p]) - total(x[p]) * total(y[p]))


def test_relations_define_sums():
    relations = {normal_form.atom(x[p], n): n * a}
    assert not normal_form.vanishes(total(x[p] - a))
    assert normal_form.vanishes(total(x[p] - a), relations)


def test_a_common_denominator_is_found():
    assert normal_form.vanishes(total(x[p]) / (n - 1) - total(x[p]) / n - total(x[p]) / (n * (n - 1)))
