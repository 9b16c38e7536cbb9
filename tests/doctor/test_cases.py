"""The doctor names the cause of every case, and of nothing else: one small program for each public source."""

import judging
import pytest
from fitting import Case

from xhat.torch.doctor.findings import CAUSES, Finding

# The causes of the cases that have run: loading a case trains its model.
CAUSE_OF: dict[str, str] = {}


@pytest.mark.parametrize("name", judging.CASES)
def test_the_cause_of_the_case_is_named(name: str) -> None:
    case = judging.load(name)
    CAUSE_OF[name] = case.cause
    answer = judging.ask(name, case)

    assert judging.fault_of(case, answer) == "", [(f.severity, f.cause, f.symptom) for f in answer.findings]


def test_every_cause_has_a_case() -> None:
    assert {CAUSE_OF.get(name) or judging.load(name).cause for name in judging.CASES} == set(CAUSES)


def test_every_case_has_a_source_of_its_own() -> None:
    sources = [judging.source(name) for name in judging.CASES]
    assert len(set(sources)) == len(sources) == len(judging.CASES)


def found(*pairs: tuple[str, str]) -> judging.Answer:
    return judging.Answer([Finding(cause, severity, (), "", {}, "", "", "") for severity, cause in pairs])


@pytest.mark.parametrize(
    ("findings", "fault"),
    [
        ([("harmful", "momentum"), ("risk", "dead-channels")], ""),
        ([("risk", "momentum")], "nothing is called harmful"),
        ([], "nothing is called harmful"),
        ([("harmful", "dead-channels")], "harmful and false: dead-channels"),
        ([("harmful", "momentum"), ("harmful", "digits-lost")], "harmful and false: digits-lost"),
        ([("harmful", "batches-too-small"), ("harmful", "momentum")], "named first: batches-too-small"),
    ],
)
def test_a_wrong_answer_to_a_harmful_case_is_seen(findings: list[tuple[str, str]], fault: str) -> None:
    case = Case("momentum", model=None, also=("batches-too-small",))  # type: ignore[arg-type]
    assert judging.fault_of(case, found(*findings)) == fault


@pytest.mark.parametrize(
    ("findings", "fault"),
    [
        ([("note", "dead-channels")], ""),
        ([("harmful", "dead-channels")], ""),
        ([("risk", "momentum")], "not named"),
        ([("harmful", "momentum"), ("risk", "dead-channels")], "harmful and false: momentum"),
    ],
)
def test_a_wrong_answer_to_a_risk_is_seen(findings: list[tuple[str, str]], fault: str) -> None:
    case = Case("dead-channels", model=None, severity="risk")  # type: ignore[arg-type]
    assert judging.fault_of(case, found(*findings)) == fault
