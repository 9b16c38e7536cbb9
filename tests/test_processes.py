"""Processes and threads: forks, many callers at once, the number of threads, and the interpreter's lock.

Every claim is made in a process of its own, which is ended when it hangs.
"""

import json
import os

import pytest
from conftest import in_a_process

BATCH = """
import json, os, sys, threading
import numpy as np
import xhat

rng = np.random.default_rng(0)
x, dy = (rng.normal(size=(16, 24, 56, 56)).astype(np.float32) for _ in range(2))

def run(x=x, dy=dy):
    y, context = xhat.batch_norm(x, activation="silu")
    return y, xhat.batch_norm_backward(dy, context).dx

def same(a, b):
    return all(np.array_equal(p, q) for p, q in zip(a, b, strict=True))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize("threads", ["1", "2", "4"])
def test_a_forked_child_works_after_the_parent_has_used_the_kernels(threads: str) -> None:
    """And so does a child of the child, and the parent afterwards."""
    code = """
import signal, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads: the very thing under test
before = run()

def child(depth):
    signal.alarm(30)  # ends a child that hangs
    good = same(run(), before)
    if depth:
        good = good and forked(depth - 1)
    os._exit(0 if good else 1)

def forked(depth):
    pid = os.fork()
    if pid == 0:
        child(depth)
    return os.waitpid(pid, 0)[1] == 0

good = forked(1)
print(json.dumps([good, same(run(), before), xhat.config()["threads"]]))
"""
    assert json.loads(in_a_process(BATCH + code, OMP_NUM_THREADS=threads)) == [True, True, int(threads)]


def test_a_pool_of_processes_works() -> None:
    """What a data loader does: the parent computes, its workers compute."""
    code = """
import multiprocessing, warnings
warnings.simplefilter("ignore", DeprecationWarning)
before = run()
with multiprocessing.get_context("fork").Pool(2) as pool:
    good = pool.map_async(lambda_free, range(4)).get(60)
print(json.dumps(good))
"""
    if not hasattr(os, "fork"):
        pytest.skip("there is no fork here")
    job = "\ndef lambda_free(i):\n    return same(run(), before)\n"
    assert json.loads(in_a_process(BATCH + job + code, OMP_NUM_THREADS="2")) == [True] * 4


@pytest.mark.parametrize("threads", ["1", "2"])
def test_many_python_threads_at_once(threads: str) -> None:
    """Eight callers, each with a batch of its own, against the same batches one after the other."""
    code = """
from concurrent.futures import ThreadPoolExecutor
batches = [(x[i % 4 :] + np.float32(i), dy[i % 4 :]) for i in range(8)]
alone = [run(*b) for b in batches]
good = True
with ThreadPoolExecutor(8) as pool:
    for _ in range(6):
        good &= all(same(a, b) for a, b in zip(pool.map(lambda b: run(*b), batches), alone, strict=True))
print(json.dumps(bool(good)))
"""
    assert json.loads(in_a_process(BATCH + code, OMP_NUM_THREADS=threads))


def test_python_threads_may_share_a_context() -> None:
    code = """
from concurrent.futures import ThreadPoolExecutor
_, context = xhat.batch_norm(x)
alone = xhat.batch_norm_backward(dy, context).dx
with ThreadPoolExecutor(4) as pool:
    together = list(pool.map(lambda _: xhat.batch_norm_backward(dy, context).dx, range(16)))
print(json.dumps(all(np.array_equal(alone, dx) for dx in together)))
"""
    assert json.loads(in_a_process(BATCH + code, OMP_NUM_THREADS="2"))


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_the_environment_sets_the_number_of_threads(threads: int) -> None:
    code = 'import xhat; print(xhat.config()["threads"])'
    assert int(in_a_process(code, OMP_NUM_THREADS=str(threads))) == threads


def test_threadpoolctl_sets_the_number_of_threads() -> None:
    code = """
import threadpoolctl
seen = []
for n in (1, 2, 5):
    with threadpoolctl.threadpool_limits(n, user_api="openmp"):
        seen.append(xhat.config()["threads"])
        run()
print(json.dumps([seen, xhat.config()["threads"]]))
"""
    assert json.loads(in_a_process(BATCH + code, OMP_NUM_THREADS="4")) == [[1, 2, 5], 4]


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted in Linux's /proc")
@pytest.mark.parametrize("threads", [1, 3])
def test_no_more_threads_are_started_than_allowed(threads: int) -> None:
    """And no fewer: a large batch is worked on by all of them."""
    code = """
count = lambda: len(os.listdir("/proc/self/task"))
before = count()
run()
print(count() - before)
"""
    quiet = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": str(threads)}
    assert int(in_a_process(BATCH + code, **quiet)) == threads - 1


def test_one_pool_is_shared_with_pytorch() -> None:
    pytest.importorskip("torch")
    code = """
import torch
torch.set_num_threads(1)
print(json.dumps([xhat.config()["threads"]]))
torch.set_num_threads(2)
run()
"""
    # PyTorch first: its OpenMP is the one that is loaded.
    assert json.loads(in_a_process("import torch\n" + BATCH + code, OMP_NUM_THREADS="2")) == [1]


LOCK = """
import time
sys.setswitchinterval(1000)  # no thread gives the lock away unless it lets go by itself

def another_thread_ran_during(work):
    gate, ran = threading.Event(), []
    other = threading.Thread(target=lambda: (gate.wait(), ran.append(True)))
    other.start()
    gate.set()
    for _ in range(3000):  # a busy machine may take its time to wake the other thread
        work()
        if ran:
            break
    seen = bool(ran)
    other.join()
    return seen

_, context = xhat.batch_norm(x)
works = {
    "nothing": lambda: sum(range(1_000)),
    "forward": lambda: xhat.batch_norm(x),
    "backward": lambda: xhat.batch_norm_backward(dy, context),
    "normalize": lambda: xhat.normalize(x, context.mean, context.var),
    "moments": lambda: xhat.moments(x),
}
print(json.dumps({name: another_thread_ran_during(work) for name, work in works.items()}))
"""


def test_the_interpreters_lock_is_released() -> None:
    found = json.loads(in_a_process(BATCH + LOCK, OMP_NUM_THREADS="2"))
    assert found == {"nothing": False, "forward": True, "backward": True, "normalize": True, "moments": True}


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="memory is not limited like this here")
def test_too_little_memory_is_an_error_that_can_be_caught() -> None:
    """Wherever it ends. An exception in one of several threads would end the process."""
    code = """
import resource
x = np.full((2, 1_500_000), 99, np.float32)  # so many channels that no thread has room for all of their factors
x[1] = 101
y, context = xhat.batch_norm(x, out=np.empty_like(x))
used = int(open("/proc/self/statm").read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
_, most = resource.getrlimit(resource.RLIMIT_AS)
ends = []
for more in range(0, 512, 32):
    resource.setrlimit(resource.RLIMIT_AS, (used + more * 2**20, most))
    try:
        xhat.batch_norm(x, out=y)
        ends.append("done")
    except MemoryError:
        ends.append("refused")
print(json.dumps([ends[0], ends[-1]]))
"""
    assert json.loads(in_a_process(BATCH + code, OMP_NUM_THREADS="2")) == ["refused", "done"]
