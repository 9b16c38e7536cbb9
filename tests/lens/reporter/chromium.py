"""A headless Chromium for the browser tests: found, or Debian's package installed where that may be done.

Where there is none the tests are skipped with the reason; under CI=true that is a failure, so that they can't
silently never run.
"""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = [
    "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars",
]  # fmt: skip


def unavailable(reason: str) -> NoReturn:
    """Skip with the reason; under CI=true, fail with it."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"the browser tests can't run, and CI=true asks for them: {reason}", pytrace=False)
    pytest.skip(reason)


def find() -> str:
    """The path of Chromium, after installing it where this is Debian, by root, with apt-get."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found:
        return found
    if os.name != "posix" or os.geteuid() != 0 or not shutil.which("apt-get"):
        unavailable(
            "no Chromium found, and only root can install Debian's package (apt-get install chromium)"
        )
    reason = install()
    return shutil.which("chromium") or unavailable(reason)


def install() -> str:
    """Install Debian's package; the reason where that does not work."""
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
