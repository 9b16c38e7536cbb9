"""Without Chromium: installed by root, else skipped with the reason, and a failure with CI=true."""

import subprocess
from typing import Any

import pytest
from lens.reporter import chromium


class Machine:
    """A fake of shutil.which, geteuid and apt-get."""

    def __init__(self, commands: set[str], user: int, works: bool = True) -> None:
        self.commands, self.user, self.works = commands, user, works
        self.ran: list[str] = []

    def which(self, name: str) -> str | None:
        return f"/usr/bin/{name}" if name in self.commands else None

    def run(self, command: list[str], **options: Any) -> Any:
        self.ran.append(" ".join(command[:2]))
        if self.works and "install" in command:
            self.commands.add("chromium")
        return subprocess.CompletedProcess(command, 0 if self.works else 100, "", "E: no network\n")


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> Any:
    def machine(commands: set[str], user: int = 1000, works: bool = True, ci: str = "") -> Machine:
        made = Machine(commands, user, works)
        monkeypatch.setattr(chromium.shutil, "which", made.which)
        monkeypatch.setattr(chromium.os, "geteuid", lambda: made.user)
        monkeypatch.setattr(chromium.subprocess, "run", made.run)
        monkeypatch.setenv("CI", ci)
        return made

    return machine


def test_an_existing_chromium_is_used(on: Any) -> None:
    machine = on({"google-chrome", "chromium-browser", "apt-get"}, user=0)
    assert chromium.find() == "/usr/bin/chromium-browser"
    assert machine.ran == []


def test_root_installs_debians_package(on: Any) -> None:
    machine = on({"apt-get"}, user=0)
    assert chromium.find() == "/usr/bin/chromium"
    assert machine.ran == ["apt-get update", "apt-get install"]


@pytest.mark.parametrize(
    ("commands", "user", "works", "reason"),
    [
        ({"apt-get"}, 1000, True, "only root can install Debian's package"),
        (set(), 0, True, "only root can install Debian's package"),
        ({"apt-get"}, 0, False, "apt-get can't install chromium: E: no network"),
    ],
)
def test_the_reason_for_skipping_is_given(
    on: Any, commands: set[str], user: int, works: bool, reason: str
) -> None:
    on(set(commands), user, works)
    with pytest.raises(pytest.skip.Exception, match=reason):
        chromium.find()
    on(set(commands), user, works, ci="true")
    with pytest.raises(pytest.fail.Exception, match=reason):
        chromium.find()
