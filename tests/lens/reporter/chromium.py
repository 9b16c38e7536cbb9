"""A headless Chromium for the browser tests: found on PATH, or installed as Debian's package by root.

Without one the tests are skipped with the reason; with CI=true they fail, so that they can't be skipped unnoticed.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = [
    "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars",
]  # fmt: skip


def unavailable(reason: str) -> NoReturn:
    """Skip with this reason; with CI=true, fail."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"the browser tests can't run, and CI=true asks for them: {reason}", pytrace=False)
    pytest.skip(reason)


def find() -> str:
    """The path of Chromium, which root installs with apt-get if it is missing."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found:
        return found
    if os.name != "posix" or os.geteuid() != 0 or not shutil.which("apt-get"):
        unavailable(
            "no Chromium found, and only root can install Debian's package (apt-get install chromium)"
        )
    with _one_at_a_time():
        found = shutil.which("chromium")
        reason = "" if found else install()
    return found or shutil.which("chromium") or unavailable(reason)


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    """apt-get has a lock and does not wait for it, and the tests run in several processes."""
    import fcntl

    with open(Path(tempfile.gettempdir()) / "xhat-chromium.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def install() -> str:
    """Install Debian's package; returns the reason for a failure."""
    quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update", "-qq"], ["install", "-y", "-qq", "--no-install-recommends", "chromium"]):
        try:
            done = subprocess.run(
                ["apt-get", *command], env=quiet, capture_output=True, text=True, timeout=600, check=False
            )
        except subprocess.TimeoutExpired:
            return f"apt-get {command[0]} took longer than ten minutes"
        if done.returncode and command[0] == "install":
            return f"apt-get can't install chromium: {''.join(done.stderr.strip().splitlines()[-1:])}"
    return "apt-get installed chromium, but no such command was found afterwards"


@contextmanager
def browser() -> Iterator[Any]:
    """A running Chromium, driven by Playwright."""
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        unavailable("Playwright is missing, install it with pip install playwright")
    path = find()
    arguments = QUIET + (["--no-sandbox"] if os.name == "posix" and os.geteuid() == 0 else [])
    with sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=arguments)
        yield running
        running.close()
