"""The cases: each file makes a fault that people had in public, in a network and on data of its own.

A file is named by its source. It has `SOURCE`, the issue or page, and `case(seed)`, which returns a `Case`.
"""
