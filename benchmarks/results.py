"""Rows of a run, the machine they come from, and the committed file that holds both.

A results file is a CSV whose first lines, `# key: value`, describe machine, versions and commit.
"""

import csv
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_type_hints

__all__ = ["RESULTS_FOLDER", "ROOT", "Index", "Row", "fill", "index", "machine", "read", "slug", "write"]

ROOT = Path(__file__).resolve().parents[1]
RESULTS_FOLDER = ROOT / "benchmarks" / "results"
PACKAGES = ("numpy", "torch", "jax", "numba", "ml_dtypes")


class Row(NamedTuple):
    """One contestant in one pass of one case: microseconds, and the worst relative error (L2)."""

    case: str
    layout: str
    dtype: str
    variant: str
    what: str
    contestant: str
    threads: int
    nbytes: int
    median: float
    p20: float
    p80: float
    error: float


AnyRow = TypeVar("AnyRow", bound=Any)  # a NamedTuple of words and numbers: Row, TorchRow
Index = dict[tuple[str, str, str, str, str], dict[str, Row]]


def index(rows: Iterable[Row]) -> Index:
    """The rows by (case, layout, dtype, variant, what), then by contestant."""
    found: Index = {}
    for row in rows:
        found.setdefault((row.case, row.layout, row.dtype, row.variant, row.what), {})[row.contestant] = row
    return found


def machine(threads: int) -> dict[str, str]:
    """What a reader needs to judge the numbers: processor, caches, system, versions, commit, threads."""
    import xhat

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
    # Virtual machines hide the model's name; family and model still tell the generation.
    return f"{name} family {found['cpu family']} model {found['model']}" if "cpu family" in found else name


def _last_cache() -> str:
    folders = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"))
    return (folders[-1] / "size").read_text().strip() if folders else "unknown"


def _commit() -> str:
    """The commit, and whether what is measured differs from it."""
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
    """A real-time priority keeps other processes from a run, which a reader has to know."""
    policy = getattr(os, "sched_getscheduler", lambda process: None)(0)
    names = {getattr(os, name, ""): name for name in ("SCHED_FIFO", "SCHED_RR")}
    return f"real time ({names[policy]})" if policy in names else "normal"


def write(path: Path, machine: dict[str, str], rows: Sequence[AnyRow]) -> None:
    """The results file of rows of one kind; numbers keep four digits, which is more than the noise leaves."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        file.writelines(f"# {key}: {value}\n" for key, value in machine.items())
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(rows[0]._fields)
        writer.writerows([f"{v:.4g}" if isinstance(v, float) else v for v in row] for row in rows)


def read(path: Path, kind: type[AnyRow]) -> tuple[dict[str, str], list[AnyRow]]:
    """What `write` wrote of rows of this kind."""
    lines = path.read_text().splitlines()
    described = [line[2:].split(": ", 1) for line in lines if line.startswith("# ")]
    table = csv.DictReader(line for line in lines if not line.startswith("# "))
    kinds = get_type_hints(kind)
    rows = [kind(**{name: kinds[name](value) for name, value in line.items()}) for line in table]
    return dict(described), rows


def fill(path: Path, marker: str, text: str) -> bool:
    """Puts text between `<!-- marker:start -->` and `<!-- marker:end -->`; False without such a place."""
    if not path.exists():
        return False
    pattern = re.compile(rf"(<!-- {marker}:start -->\n).*?(<!-- {marker}:end -->)", re.DOTALL)
    filled, count = pattern.subn(lambda match: f"{match[1]}{text.rstrip()}\n{match[2]}", path.read_text())
    if count:
        path.write_text(filled)
    return bool(count)
