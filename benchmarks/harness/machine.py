"""The machine that a run is made on: what a reader needs to judge its numbers."""

import os
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import xhat
from benchmarks.harness.rows import ROOT

__all__ = ["machine", "slug"]

PACKAGES = ("numpy", "torch", "jax", "numba", "ml_dtypes")


def machine(threads: int) -> dict[str, str]:
    """Processor, caches, system, versions, commit, threads."""
    config = xhat.config()
    found = {
        "processor": _processor(),
        "cores": str(os.cpu_count()),
        "last-level cache": _last_cache(),
        "system": f"{platform.system()} {platform.machine()}",
        "threads": str(threads),
        "python": platform.python_version(),
        "xhat": f"{config['version']}, {config['isa']}",
        "commit": _commit(),
        "priority": _priority(),
    }
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def slug(machine: dict[str, str]) -> str:
    """The file name of a machine: system, processor and cores."""
    words = f"{machine['system']} {machine['processor']} {machine['cores']} cores".lower()
    return re.sub(r"[^a-z0-9]+", "-", words).strip("-")


def _processor() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or "unknown processor"
    found = dict(re.findall(r"^(.+?)\s*:[ \t]*(.*)$", text, re.MULTILINE))
    name = found.get("model name", platform.machine())
    # A virtual machine may hide the name; family and model still tell the generation.
    return f"{name} family {found['cpu family']} model {found['model']}" if "cpu family" in found else name


def _last_cache() -> str:
    folders = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"))
    return (folders[-1] / "size").read_text().strip() if folders else "unknown"


def _commit() -> str:
    """The commit, and whether the sources differ from it."""
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
        )
        changed = subprocess.run(
            ["git", "diff", "--quiet", "HEAD", "--", "kernels", "src"], cwd=ROOT, check=False
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit.stdout.strip() + (" with changes" if changed.returncode else "")


def _priority() -> str:
    """Real time or normal: under a real-time priority no other process interrupts a run."""
    policy = getattr(os, "sched_getscheduler", lambda process: None)(0)
    names = {getattr(os, name, ""): name for name in ("SCHED_FIFO", "SCHED_RR")}
    return f"real time ({names[policy]})" if policy in names else "normal"
