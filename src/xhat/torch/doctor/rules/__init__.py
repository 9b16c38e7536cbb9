"""From measurements to findings. One file for each idea; each has a function `judge(measured)`."""

from xhat.torch.doctor.findings import Finding, Unjudged
from xhat.torch.doctor.measured import Measured
from xhat.torch.doctor.rules import batches, graphs, numbers, statistics, structure

__all__ = ["judged"]

RULES = (statistics.judge, batches.judge, structure.judge, numbers.judge, graphs.judge)


def judged(measured: Measured) -> tuple[list[Finding], list[Unjudged]]:
    """All findings, and the causes that could not be judged."""
    findings: list[Finding] = []
    unjudged: list[Unjudged] = []
    for rule in RULES:
        for found in rule(measured):
            if isinstance(found, Finding):
                findings.append(found)
            else:
                unjudged.append(found)
    return findings, unjudged
