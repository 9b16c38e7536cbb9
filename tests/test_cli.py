"""The command line: standard output, standard error, and exit status."""

import subprocess
import sys
from importlib.metadata import entry_points, version
from importlib.util import find_spec

import pytest

import xhat
from xhat.cli import COMMANDS, main
from xhat.errors import ShapeError


def test_the_version_is_that_of_the_package(capsys):
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"xhat {version('xhat')}\n"


def test_config_shows_what_the_engine_uses(capsys):
    assert main(["config"]) == 0
    shown = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    config = xhat.config()
    assert shown == {
        **config,
        "isa_available": " ".join(config["isa_available"]),
        "threads": str(config["threads"]),
    }
    assert shown["python"] == sys.version.split()[0] and shown["numpy"] == version("numpy")


def test_without_a_command_the_commands_are_listed(capsys):
    assert main([]) == 2
    shown = capsys.readouterr().out
    assert all(f"\n    {name} " in shown for name in COMMANDS)


def test_an_unknown_command_is_one_sentence_that_lists_the_commands(capsys):
    assert main(["foo", "--seed", "1"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert (
        shown.err
        == "xhat: there is no command 'foo', expected one of demo, report, check, doctor, derive, config.\n"
    )


def test_the_installed_script_is_this_function():
    (script,) = entry_points(group="console_scripts", name="xhat")
    assert script.load() is main


def test_importing_the_command_line_loads_no_optional_package():
    code = "import sys, xhat.cli; print(sorted({name.partition('.')[0] for name in sys.modules}))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "'xhat'" in shown
    for module in ("matplotlib", "rich", "sklearn", "sympy", "torch", "jax", "threadpoolctl"):
        assert f"'{module}'" not in shown


DEMO = ["matplotlib", "rich", "sklearn", "threadpoolctl"]


@pytest.mark.parametrize("extra", DEMO)
def test_a_missing_extra_is_one_sentence(extra, monkeypatch, capsys, tmp_path):
    if not all(find_spec(name) for name in DEMO if name != extra):
        pytest.skip("another package of the demo is missing here, and may be named first")
    for name in [name for name in sys.modules if name.startswith("xhat.demo")]:
        monkeypatch.delitem(sys.modules, name)
    for name in [name for name in sys.modules if name.partition(".")[0] == extra]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, extra, None)
    assert main(["demo", "--out", str(tmp_path / "demo")]) == 2
    shown = capsys.readouterr()
    assert shown.err == f"xhat demo: {extra} is missing, install it with pip install 'xhat[demo]'.\n"
    assert shown.out == ""
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--steps", "0"], "argument --steps: 0 is below 1"),
        (["--seed", "-1"], "argument --seed: -1 is below 0"),
        (["--seed", str(2**63)], f"argument --seed: {2**63} is above {2**63 - 1}"),
        (["--steps", "many"], "argument --steps: invalid whole value: 'many'"),
    ],
)
def test_an_invalid_number_is_refused(arguments, sentence, capsys):
    with pytest.raises(SystemExit) as left:
        main(["demo", *arguments])
    assert left.value.code == 2
    assert sentence in capsys.readouterr().err


def test_an_unwritable_folder_is_one_sentence(capsys, tmp_path):
    pytest.importorskip("rich")
    pytest.importorskip("sklearn")
    pytest.importorskip("matplotlib")
    taken = tmp_path / "taken"
    taken.write_text("a file")
    assert main(["demo", "--out", str(taken)]) == 2
    assert capsys.readouterr().err == (
        f"xhat demo: can't write to {taken} (File exists), choose another --out.\n"
    )


def test_an_error_of_xhat_is_a_sentence_and_an_interrupt_is_quiet(monkeypatch, capsys):
    def refused(args):
        raise ShapeError("moments: no.")

    def interrupted(args):
        raise KeyboardInterrupt

    monkeypatch.setitem(COMMANDS, "config", ("", lambda parser: None, refused))
    assert main(["config"]) == 2
    assert capsys.readouterr().err == "xhat config: moments: no.\n"
    monkeypatch.setitem(COMMANDS, "config", ("", lambda parser: None, interrupted))
    assert main(["config"]) == 130
    assert capsys.readouterr().err == ""


def test_the_package_runs_as_the_command():
    run = subprocess.run([sys.executable, "-m", "xhat", "foo"], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (2, "") and run.stderr.startswith(
        "xhat: there is no command 'foo'"
    )
