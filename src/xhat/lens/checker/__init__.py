"""Checks a batch-norm implementation and names its mistakes.

check, load               entry points for functions and for files
adapter, modules          calling conventions: arguments and results by name; classes as functions
arrays, probes, runner    the test data, as NumPy, PyTorch or JAX arrays, and one run of the code under test
reference, faults         the exact computation with a fault in any step, and the faults that have names
search, fit               the smallest sets of faults that reproduce the outputs
diagnose, verdict         the judgement of one layout, and its presentation
statistics, rounding, unexplained    what `search` does not cover
rewrite, watch            the code under test, with a hook at each of its values
exact, powers, values     which exact step a value is, or a multiple of which
experiment, repair, blame, first_line    values replaced until an output is right: the first wrong line
jacobian, terms, formula  the formula that an output obeys; `locate` asks for lines and formulas
"""
