"""Arrays in place of code, for the authors of kernels.

dumps, cases              the files, and which array is which quantity
data                      `check_data`: the arrays judged against the exact results of the same inputs
naming, lost              names for the mistakes, and sums that lost a part of their terms
joining, command          the verdicts of several cases as one; the options of `xhat check`
"""
