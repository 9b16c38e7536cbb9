"""Proofs and refutations of equations in LaTeX: those of the source derivation, of `equations.py`, and of a user.

source, corrections    the document that is judged, and its corrections
expressions, parse     LaTeX -> expression trees; notation, printed: LaTeX as papers and lectures print it
domains, evaluate      three domains in which both sides of an equation are evaluated; normal_form: finite sums
prove                  the verdict on an equation; records: on the displays of the source
reading                the verdict on a printed equation; edits, nearest: the mistake in a wrong one
theorems               the closed forms of `equations.py`; merge_proof, second_proof: two special proofs
document, command      docs/derivation.md, and `xhat derive`
"""
