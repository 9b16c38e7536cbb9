"""The example on three processes, with unequal parts, prints the losses that it prints on one, to the last digit."""

import subprocess
import sys

from launching import ROOT, environment, torchrun

EXAMPLE = str(ROOT / "examples" / "05_one_batch_on_many_processes.py")


def printed(ranks: int) -> list[str]:
    """The lines that it prints on this many processes."""
    alone = [sys.executable, EXAMPLE]
    command = alone if ranks == 1 else torchrun("--standalone", f"--nproc-per-node={ranks}", EXAMPLE)
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.splitlines()


def test_the_losses_are_those_of_one_process() -> None:
    alone = printed(1)
    assert printed(3) == alone
    assert len(alone) == 6 and alone[0].startswith("step   0   loss 2.3195")
