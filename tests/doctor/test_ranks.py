"""`diagnose` on several ranks; each claim is a function of ranks/diagnoses.py."""

import ast

import pytest
from pytorch.launching import RANKS, failures, world

PROGRAM = "diagnoses.py"
CLAIMS = [
    node.name
    for node in ast.parse((RANKS / PROGRAM).read_text()).body
    if isinstance(node, ast.FunctionDef) and node.decorator_list
]


@pytest.mark.parametrize("claim", CLAIMS)
def test_on_two_ranks(claim: str) -> None:
    assert not failures(world(PROGRAM, 2), claim)
