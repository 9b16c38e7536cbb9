"""Real processes for the tests: torchrun, gloo on the loopback, and what each rank says. All bounded in time."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

RANKS = Path(__file__).parent / "ranks"
ROOT = Path(__file__).parents[2]


def environment(**more: str) -> dict[str, str]:
    """The ranks' environment: one thread each, gloo where it is told."""
    mine = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR", **more}
    return {**os.environ, **mine}


def torchrun(*arguments: str) -> list[str]:
    """The command."""
    return [sys.executable, "-m", "torch.distributed.run", *arguments]


def said(folder: Path) -> list[Any]:
    """What the ranks wrote, in their order."""
    return [
        json.loads(f.read_text()) for f in sorted(folder.glob("rank*.json"), key=lambda f: int(f.stem[4:]))
    ]


@cache
def world(program: str, ranks: int, timeout: float = 150, **more: str) -> list[Any]:
    """Runs a program of the folder `ranks` on so many ranks, once, and gives what each of them said."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            torchrun("--standalone", "--nproc-per-node", str(ranks), str(RANKS / program)),
            env=environment(XHAT_SAYS=folder, **more),
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        results = said(Path(folder))
    tail = "\n".join((done.stdout + done.stderr).splitlines()[-60:])
    assert len(results) == ranks, f"{len(results)} of {ranks} ranks of {program} said something:\n{tail}"
    return results


def failures(results: list[Mapping[str, str]], claim: str) -> str:
    """What the ranks found wrong with a claim; empty where all of them have checked it and it holds."""
    wrong = {rank: said.get(claim, "was not reached") for rank, said in enumerate(results)}
    return "\n".join(f"rank {rank}: {why}" for rank, why in wrong.items() if why)
