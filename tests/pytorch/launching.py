"""Processes for the tests: ranks, gloo on the loopback interface, and what each rank reports. With timeouts."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

RANKS = Path(__file__).parent / "ranks"
ROOT = Path(__file__).parents[2]


def environment(**more: str) -> dict[str, str]:
    """The environment of a rank: one thread, and gloo's network interface."""
    mine = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR", **more}
    return {**os.environ, **mine}


def torchrun(*arguments: str) -> list[str]:
    """The command."""
    return [sys.executable, "-m", "torch.distributed.run", *arguments]


def said(folder: Path) -> list[Any]:
    """The reports of the ranks, in the order of the ranks."""
    return [
        json.loads(f.read_text()) for f in sorted(folder.glob("rank*.json"), key=lambda f: int(f.stem[4:]))
    ]


def _free_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


@cache
def world(program: str, ranks: int, timeout: float = 150, **more: str) -> list[Any]:
    """The reports of the ranks of a program in the folder `ranks`, which runs once on this many ranks.

    The processes are started here, with the variables that torchrun sets: torchrun would import torch once more.
    """
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port(), "WORLD_SIZE": str(ranks)}
    with tempfile.TemporaryDirectory() as folder, open(Path(folder, "log"), "w+") as log:
        processes = [
            subprocess.Popen(
                [sys.executable, str(RANKS / program)],
                env=environment(XHAT_SAYS=folder, RANK=str(rank), LOCAL_RANK=str(rank), **group, **more),
                stdout=log,
                stderr=log,
            )
            for rank in range(ranks)
        ]
        try:
            end = time.monotonic() + timeout
            for process in processes:
                process.wait(timeout=end - time.monotonic())
        finally:
            for process in processes:
                process.kill()
                process.wait()
        results = said(Path(folder))
        log.seek(0)
        tail = "\n".join(log.read().splitlines()[-60:])
    assert len(results) == ranks, f"{len(results)} of {ranks} ranks of {program} wrote something:\n{tail}"
    return results


def failures(results: list[Mapping[str, str]], claim: str) -> str:
    """What is wrong with a claim, by rank; empty if all ranks have run it and it holds."""
    wrong = {rank: said.get(claim, "was not reached") for rank, said in enumerate(results)}
    return "\n".join(f"rank {rank}: {why}" for rank, why in wrong.items() if why)
