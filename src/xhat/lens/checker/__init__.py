"""Checks a batch-norm implementation and names its mistakes.

check, load, command      entry points for functions, for files, and for the command line
adapter, modules          calling conventions: arguments and results by name; classes as functions
arrays, probes, runner    the test data, as NumPy, PyTorch or JAX arrays, and one run of the code under test
reference, faults         the exact computation with a fault in any step, and the faults that have names
search, fit               the smallest sets of faults that reproduce the outputs
diagnose, verdict         the judgement of one layout, and its presentation
statistics, rounding, unexplained    what `search` does not cover
"""
