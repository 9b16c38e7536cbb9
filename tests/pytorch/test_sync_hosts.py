"""Two hosts: two network namespaces of this machine, joined by a cable that is a pair of virtual interfaces."""

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from launching import RANKS, environment, failures, said, torchrun

CLAIMS = (
    "a_split_batch_gives_what_the_whole_batch_gives",
    "the_gradient_of_the_gradient",
    "all_ranks_hold_the_same_bits_run_after_run",
    "one_collective_forward_and_one_backward_whatever_the_options",
)
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="network namespaces are Linux's")


class Cable:
    """Two hosts: their namespaces, interfaces and addresses."""

    def __init__(self) -> None:
        self.root = [] if os.geteuid() == 0 else ["sudo", "-n", "-E"]
        tag = uuid.uuid4().hex[:6]
        self.hosts = [f"xhat-{tag}-{i}" for i in range(2)]
        self.interfaces = [f"x{tag}{i}" for i in range(2)]
        self.addresses = ["10.213.7.1", "10.213.7.2"]

    def ip(self, *arguments: str, check: bool = True) -> None:
        """iproute2, as root."""
        done = subprocess.run([*self.root, "ip", *arguments], capture_output=True, text=True, timeout=20)
        if check and done.returncode:
            raise OSError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")

    def lay(self) -> None:
        """Makes the hosts and connects them."""
        for host in self.hosts:
            self.ip("netns", "add", host)
        (a, b), (x, y) = self.hosts, self.interfaces
        self.ip("link", "add", x, "netns", a, "type", "veth", "peer", "name", y, "netns", b)
        for host, interface, address in zip(self.hosts, self.interfaces, self.addresses, strict=True):
            self.ip("-n", host, "addr", "add", f"{address}/24", "dev", interface)
            for name in (interface, "lo"):
                self.ip("-n", host, "link", "set", name, "up")

    def remove(self) -> None:
        """The cable goes with its ends."""
        for host in self.hosts:
            self.ip("netns", "del", host, check=False)


@pytest.fixture
def cable() -> Iterator[Cable]:
    """Skips, with the reason, where this machine has no such things; on continuous integration that is an error."""
    made = Cable()
    try:
        if shutil.which("ip") is None:
            raise OSError("there is no ip (package iproute2)")
        made.lay()
    except (OSError, subprocess.SubprocessError) as error:
        made.remove() if shutil.which("ip") else None
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(f"no network namespaces here: {error}")
    yield made
    made.remove()


def test_two_hosts_hold_the_same_batch(cable: Cable, tmp_path: Path) -> None:
    nodes = []
    for i, (host, interface) in enumerate(zip(cable.hosts, cable.interfaces, strict=True)):
        variables = environment(
            XHAT_SAYS=str(tmp_path), GLOO_SOCKET_IFNAME=interface, XHAT_CLAIMS=" ".join(CLAIMS)
        )
        command = torchrun(
            "--nnodes=2", f"--node-rank={i}", "--nproc-per-node=1", f"--master-addr={cable.addresses[0]}",
            "--master-port=29555", str(RANKS / "exchanges.py"),
        )  # fmt: skip
        with (tmp_path / f"log{i}").open("w") as log:
            nodes.append(
                subprocess.Popen(
                    [*cable.root, "ip", "netns", "exec", host, *command],
                    env=variables,
                    stdout=log,
                    stderr=log,
                )
            )
    try:
        for node in nodes:
            node.wait(timeout=150)
    finally:
        for node in nodes:
            node.kill()
    results = said(tmp_path)
    logs = "".join((tmp_path / f"log{i}").read_text()[-2000:] for i in range(2))
    assert len(results) == 2, logs
    for claim in CLAIMS:
        assert not failures(results, claim)
