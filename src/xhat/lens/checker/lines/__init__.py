"""The first wrong line of the code under test.

rewrite, watch            the source rewritten so that every value can be seen and replaced
experiment, values        a run with values replaced, and the values of several batches side by side
repair, blame             the value that would make the output right, and which value is the mistake
first_line, locate        the first wrong line; all lines and formulas of a verdict
"""
