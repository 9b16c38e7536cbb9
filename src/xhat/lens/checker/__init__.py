"""Checks a batch-norm implementation and names its mistakes.

check, load, command      entry points for functions, for files, and for the command line
verdict                   what they return, and how it is presented
calling                   how the code under test is called
expected                  the exact results, and the rounding that is allowed
faults                    the catalogue: faults in the exact computation, with their names
diagnosis                 the judgement of one layout: which faults reproduce the outputs, and all else
lines, formulas           the first wrong line, and the formula that an output obeys
kernels                   arrays in place of code
files                     source files, notebooks and folders, in limited processes
page                      the page of verdicts
"""
