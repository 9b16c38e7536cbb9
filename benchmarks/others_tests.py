"""`python -m benchmarks.others_tests`: the batch-norm tests of Flax and Equinox, with our layers in place of theirs.

    python -m benchmarks.others_tests flax                       from its source archive on the package index
    python -m benchmarks.others_tests equinox --source FOLDER    from a clone: its archive has no tests

Each runs twice: as it is, and with the class replaced before a test module is imported. Nothing of theirs is kept.
"""

import argparse
import importlib
import importlib.metadata
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

__all__ = ["SUITES", "main", "pytest_configure"]

REPLACED = "XHAT_REPLACES"


class Suite(NamedTuple):
    """A file of tests, which of them, and the class that is replaced: where it is theirs, and where ours."""

    package: str
    file: str
    chosen: str
    theirs: str
    ours: str


SUITES = [
    Suite("flax", "tests/nnx/nn/normalization_test.py", "batchnorm", "flax.nnx", "xhat.flax.nnx"),
    Suite("flax", "tests/linen/linen_test.py", "batch_norm", "flax.linen", "xhat.flax.linen"),
    Suite("equinox", "tests/test_nn.py", "batch_norm", "equinox.nn", "xhat.equinox"),
]


def pytest_configure() -> None:
    """The plugin: where the environment names packages, their layers are ours from here on."""
    for suite in SUITES:
        if os.environ.get(REPLACED) == suite.package:
            theirs, ours = (importlib.import_module(name) for name in (suite.theirs, suite.ours))
            theirs.BatchNorm = ours.BatchNorm  # type: ignore[attr-defined]


def sources(package: str, folder: Path) -> Path:
    """The source archive of the installed version, from the package index, unpacked into this folder."""
    version = importlib.metadata.version(package)
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--no-binary",
            ":all:",
            f"{package}=={version}",
        ],
        cwd=folder,
        check=True,
    )
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        packed.extractall(folder, filter="data")
    return archive.with_name(archive.name.removesuffix(".tar.gz"))


def outcome(suite: Suite, root: Path, replaced: bool) -> str:
    """The last line of pytest, without its time."""
    here = Path(__file__).parent.parent
    environment = {**os.environ, REPLACED: suite.package if replaced else "", "PYTHONPATH": str(here)}
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", ".", "-p", "no:cacheprovider",
         "-p", "benchmarks.others_tests", suite.file, "-k", suite.chosen],
        cwd=root, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return re.sub(r" in [\d.]+s.*", "", ended.stdout.strip().splitlines()[-1])


def main() -> None:
    """Prints both outcomes of every suite."""
    parser = argparse.ArgumentParser(prog="benchmarks.others_tests", description="Their tests on our layers.")
    parser.add_argument("package", choices=sorted({suite.package for suite in SUITES}))
    parser.add_argument("--source", type=Path, help="a folder with their sources, in place of the index")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = options.source or sources(options.package, Path(folder))
        for suite in SUITES:
            if suite.package == options.package:
                for replaced in (False, True):
                    who = "ours" if replaced else "theirs"
                    print(
                        f"{suite.file} -k {suite.chosen}, {who:6}: {outcome(suite, root, replaced)}",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
