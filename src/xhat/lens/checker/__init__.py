"""Checks a batch-norm implementation and names its mistakes.

check, load, command      entry points for functions, for files, and for the command line
adapter, names            calling conventions: arguments and results by name
modules, construction, state    classes as functions, and where they keep their arrays
arrays, probes            the test data, as NumPy, PyTorch or JAX arrays
runs, runner              one run of the code under test
reference, steps, faults  the exact computation with a fault in any step, and the faults that have names
conventions               an activation after it, and other meanings of gamma: no mistakes
plans                     the layout and the shapes with which the forward is right
search, fit, eps          the smallest sets of faults that reproduce the outputs, and the eps of the code
diagnose, diagnosis       the judgement of one layout
running, evaluation       running statistics, and the mode that uses them
verdict                   its presentation
statistics, rounding, unexplained    what `search` does not cover
rewrite, watch            the code under test, with a hook at each of its values
exact, powers, values     which exact step a value is, or a multiple of which
experiment, repair, blame, first_line    values replaced until an output is right: the first wrong line
jacobian, terms, formula  the formula that an output obeys; `locate` asks for lines and formulas
"""
