"""The example on two and three processes prints the losses that it prints on one, to the last digit it shows."""

import subprocess
import sys
from functools import cache

import pytest
from launching import ROOT, environment, torchrun

EXAMPLE = str(ROOT / "examples" / "05_one_batch_on_many_processes.py")


@cache
def printed(ranks: int) -> list[str]:
    """What it prints on so many processes."""
    alone = [sys.executable, EXAMPLE]
    command = alone if ranks == 1 else torchrun("--standalone", f"--nproc-per-node={ranks}", EXAMPLE)
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


@pytest.mark.parametrize("ranks", [2, 3])
def test_the_losses_are_those_of_one_process(ranks: int) -> None:
    assert printed(ranks) == printed(1)
    assert len(printed(1)) == 7 and printed(1)[0].startswith("step   0   loss 2.3195")
