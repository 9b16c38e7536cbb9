"""Code of others in processes of its own: whatever it does, a sentence says so, and nothing of it is left."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from xhat.errors import ArgumentError
from xhat.lens import check_files
from xhat.lens.checker.files import pool
from xhat.lens.checker.files.grades import Graded
from xhat.lens.checker.files.supervise import Request, supervise
from xhat.lens.checker.files.worker import spawn

RIGHT = (Path(__file__).parent / "specimens" / "closed.py").read_text()
MARK = f"a process of {os.getpid()} {time.time()}"
LINUX = sys.platform == "linux"
ONE = "import numpy, os, sys, time\ndef forward(x, gamma, beta):\n    "

# What a file does, and the reason of its only verdict; None where its functions are judged nevertheless, and right.
HOSTILE = {
    "leaves.py": (ONE + "os._exit(3)", "it ended the process with status 3."),
    "crashes.py": (ONE + "import ctypes; ctypes.string_at(0)", "it was ended by the signal SIGSEGV."),
    "prints.py": (ONE + "\n    while True: print('x' * 10**6)", "it printed more than 64 MB."),
    "recurses.py": (ONE + "return forward(x, gamma, beta)", "forward raised RecursionError"),
    "leaves_on_import.py": (f"import os\n{RIGHT}\nos._exit(0)", None),
    "asks.py": (f"name = input('name? ')\n{RIGHT}", None),
    "removes_itself.py": (f"import os\nos.remove(__file__)\n{RIGHT}", None),
    "threads.py": (
        f"import threading, time\n{RIGHT}\nthreading.Thread(target=lambda: time.sleep(999)).start()",
        None,
    ),
    "at_exit.py": (f"import atexit, time\n{RIGHT}\natexit.register(time.sleep, 999)", None),
    "closes.py": (f"import os, sys\n{RIGHT}\nos.close(1), os.close(2)", None),
    "prints_much.py": (f"{RIGHT}\nprint('x' * 3_000_000)", None),
}
if LINUX:
    HOSTILE |= {
        "hoards.py": (ONE + "return numpy.empty(6 * 2**27)", "forward raised MemoryError"),
        "forks.py": (
            ONE + "[os.fork() or (os.setsid(), time.sleep(999)) for _ in range(99)]",
            "it started more than 64 processes.",
        ),
        "leaves_a_daemon.py": (
            f"import os, time\nif os.fork() == 0:\n    os.setsid()\n    time.sleep(999)\n{RIGHT}",
            None,
        ),
        "ends_its_parent.py": (
            ONE + "os.kill(os.getppid(), 15); time.sleep(999)",
            "the process that judges it was ended from outside.",
        ),
    }
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Graded]:
    folder = tmp_path_factory.mktemp("hostile")
    for name, (text, _) in HOSTILE.items():
        (folder / name).write_text(text)
    (folder / "loop").symlink_to(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XHAT_TEST", MARK)
        graded = check_files([folder], time_limit=120, processes=2)
    return {f"{one.name}.py": one for one in graded}


@needs_fork
@pytest.mark.parametrize("name", HOSTILE)
def test_whatever_a_file_does_is_one_sentence(name: str, judged: dict[str, Graded]) -> None:
    (verdicts,) = judged[name].files
    _, reason = HOSTILE[name]
    if reason is None:
        assert verdicts, str(verdicts)
        return
    assert verdicts.status == 2
    assert str(verdicts[0].problem if verdicts.verdicts else verdicts.problem).startswith(reason)


@needs_fork
def test_a_folder_that_contains_itself_is_searched_once(judged: dict[str, Graded]) -> None:
    assert set(judged) == set(HOSTILE)


@needs_fork
def test_nothing_of_a_file_but_its_functions_runs_without_an_import(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text(f"print('imported')\n{RIGHT}")
    for imports in (True, False):
        ((verdicts,),) = (
            one.files for one in check_files([tmp_path / "code.py"], imports=imports, time_limit=120)
        )
        assert verdicts and (verdicts.output == "imported\n") is imports


@needs_fork
def test_output_is_kept_apart_and_cut(judged: dict[str, Graded]) -> None:
    output = judged["prints_much.py"].files[0].output
    assert output.startswith("xxx") and len(output) < 30_000 and output.endswith("(more was printed)")
    assert judged["asks.py"].files[0].output == "name? "


@needs_fork
@pytest.mark.skipif(not LINUX, reason="other systems don't list processes as files")
def test_no_process_is_left(judged: dict[str, Graded]) -> None:
    assert judged and marked() == []


def marked() -> list[str]:
    """The processes whose environment has the mark of this module."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if MARK.encode() in (process / "environ").read_bytes() and process.name != str(os.getpid()):
                found.append((process / "cmdline").read_text())
    return found


@needs_fork
def test_a_file_is_ended_at_its_limit_and_what_was_judged_before_is_kept(tmp_path: Path) -> None:
    (tmp_path / "loop.py").write_text(f"{RIGHT}\ndef backward_alt(dy, cache):\n    while True: pass")
    (tmp_path / "import_loop.py").write_text(f"{RIGHT}\nwhile True: pass")
    loop, on_import = check_files(
        [tmp_path / "loop.py", tmp_path / "import_loop.py"], time_limit=6, processes=2
    )
    right, endless = loop.files[0]
    assert right and endless.problem == "it ran past the time limit of 6 s."
    assert on_import.files[0]
    assert (
        on_import.files[0].notes[0].startswith("The file was not imported (ran past the time limit of 6 s)")
    )


def test_a_process_that_is_spawned_judges_the_same(tmp_path: Path) -> None:
    path = tmp_path / "code.py"
    leaves = "def backward_alt(dy, cache):\n    import os; os._exit(5)\n"
    leaves += "def backward_simple(dy, cache): return backward(dy, cache)"
    path.write_text(f"print('hello')\n{RIGHT}\n{leaves}")
    verdicts = supervise(Request(str(path), {"eps": None}, 120.0, 4.0), spawn)
    right, left, also_right = verdicts  # what comes behind is judged in another process
    assert right and left.problem == "it ended the process with status 5." and also_right
    assert also_right.subject == "forward and backward_simple"
    assert verdicts.output.startswith("hello")


def sleeping(folder: Path) -> Path:
    """A file whose function writes its process into the file `pid` and sleeps."""
    text = f"open({str(folder / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(999)"
    (folder / "slow.py").write_text(ONE + text)
    return folder / "slow.py"


def process_of(folder: Path) -> int:
    """The process that `sleeping` has written, as soon as it is there."""
    while not (folder / "pid").exists() or not (folder / "pid").read_text():
        time.sleep(0.01)
    return int((folder / "pid").read_text())


@needs_fork
def test_an_interrupt_ends_the_processes(tmp_path: Path) -> None:
    # A shell that starts this in the background has interrupts ignored.
    code = (
        "import signal, sys, xhat.cli; signal.signal(signal.SIGINT, signal.default_int_handler); "
        f"sys.exit(xhat.cli.main(['check', {str(sleeping(tmp_path))!r}]))"
    )
    run = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    pid = process_of(tmp_path)
    run.send_signal(signal.SIGINT)
    assert run.wait() == 130
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@needs_fork
def test_where_nothing_forks_an_end_ends_the_process_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_FORKS", False)
    worker = pool.Worker()
    judge = threading.Thread(target=worker.judge, args=[Request(str(sleeping(tmp_path)), {}, 120.0, 4.0)])
    judge.start()
    pid = process_of(tmp_path)
    worker.close()
    judge.join()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize("name", ["time_limit", "memory", "processes"])
def test_a_limit_is_a_number_above_zero(name: str) -> None:
    with pytest.raises(ArgumentError, match=rf"^check: {name} is -1, expected a finite number above 0\.$"):
        check_files(["any.py"], **{name: -1})  # type: ignore[arg-type]
