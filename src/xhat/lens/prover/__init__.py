"""Proofs and refutations of equations in LaTeX: those of the source derivation, of `equations.py`, and of a user.

source, corrections    the document that is judged, and its corrections
expressions, parse     LaTeX -> expression trees
domains, evaluate      three domains in which both sides of an equation are evaluated; normal_form: finite sums
prove                  the verdict on an equation, on a display of the source, on all of them
theorems               the closed forms of `equations.py`; merge_proof, second_proof: two special proofs
document, command      docs/derivation.md, and `xhat derive`
"""
