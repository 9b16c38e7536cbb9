"""Runs the doctor on a case, and compares what it names with what it must name."""

import importlib
import json
import os
import pkgutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import cases
import torch
from fitting import Case

import xhat.torch as xt
from xhat.torch.doctor.findings import Finding, Proof

HERE = Path(__file__).parent
CASES = sorted(module.name for module in pkgutil.iter_modules(cases.__path__))


class Answer(NamedTuple):
    """The findings of a case, the worst first, and the diagnosis if there was one."""

    findings: list[Any]
    diagnosis: Any = None

    @property
    def harmful(self) -> list[str]:
        """The causes of the harmful findings."""
        return [f.cause for f in self.findings if f.severity == "harmful"]


def source(name: str) -> str:
    """The issue or page that a case comes from."""
    found: str = importlib.import_module(f"cases.{name}").SOURCE
    return found


def load(name: str, seed: int = 0) -> Case:
    """The case of this name."""
    found: Case = importlib.import_module(f"cases.{name}").case(seed)
    return found


def ask(name: str, case: Case, seed: int = 0) -> Answer:
    """What the doctor finds in a case of this name."""
    if case.how == "watch":
        return _watched(case)
    if case.how == "checkpoint":
        return _checkpoint(case)
    if case.how == "ranks":
        return on_ranks(name, seed)
    return diagnosed(case)


def diagnosed(case: Case) -> Answer:
    """The findings of xt.diagnose."""
    options = {"forward": case.forward, "optimizer": case.optimizer}
    diagnosis = xt.diagnose(case.model, case.batches, case.loss, progress=False, **options)
    return Answer(diagnosis.findings, diagnosis)


def fault_of(case: Case, answer: Answer) -> str:
    """Why an answer is wrong; an empty string if it is right.

    The first harmful finding must have the case's cause, and each other one a cause that is true as well. A cause that
    harms elsewhere (severity risk or note) must be found, and no other may be called harmful.
    """
    wrong = [cause for cause in answer.harmful if cause not in (case.cause, *case.also)]
    if wrong:
        return f"harmful and false: {', '.join(wrong)}"
    if not case.cause:
        return ""
    if answer.harmful:
        return "" if answer.harmful[0] == case.cause else f"named first: {answer.harmful[0]}"
    if case.severity == "harmful":
        return "nothing is called harmful"
    return "" if case.cause in [f.cause for f in answer.findings] else "not named"


def _watched(case: Case) -> Answer:
    assert case.loop is not None and case.optimizer is not None
    with xt.watch(case.model, case.optimizer) as watch:
        case.loop(case.model, case.optimizer)
    return Answer(watch.findings)


def _checkpoint(case: Case) -> Answer:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.pt"
        torch.save(dict(case.state or {}), path)
        diagnosis = xt.examine(path)
        return Answer(diagnosis.findings, diagnosis)


def on_ranks(name: str, seed: int = 0, ranks: int = 2) -> Answer:
    """What the ranks of a process group find, each with its own model; they agree, or this fails."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    group = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WORLD_SIZE": str(ranks),
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": os.pathsep.join([str(HERE), str(HERE.parent)]),
    }
    command = [sys.executable, str(HERE / "on_ranks.py"), name, str(seed)]
    started = [
        subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, env={**os.environ, **group, "RANK": str(rank)}
        )
        for rank in range(ranks)
    ]
    try:
        printed = [process.communicate(timeout=300)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    assert not any(process.returncode for process in started), printed
    return Answer(
        [Finding(**(f | {"proof": f["proof"] and Proof(**f["proof"])})) for f in json.loads(printed[0])]
    )
