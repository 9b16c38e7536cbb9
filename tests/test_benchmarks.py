"""The benchmarks: nothing is timed that is wrong, rows say what was measured, and verdicts follow the figures."""

import io
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import oracle
import pytest

pytest.importorskip("rich")

from rich.console import Console

import xhat
from benchmarks import bench, exactness, report, torch_bench
from benchmarks.gpu import no_kernels
from benchmarks.harness import command, contest
from benchmarks.harness.cases import CASES, TINY, Case
from benchmarks.harness.command import write_all
from benchmarks.harness.contest import RESULTS, Contestant, Entry, Unverified, race, verify
from benchmarks.harness.machine import machine
from benchmarks.harness.problem import EPS, Problem, Variant, exact
from benchmarks.harness.report import fill
from benchmarks.harness.rows import RESULTS_FOLDER, Row, races, read, write
from benchmarks.harness.targets import Verdict, judged
from benchmarks.numpy import measure, ours, rivals
from benchmarks.numpy.floor import Floor
from benchmarks.numpy.tables import tables
from benchmarks.numpy.targets import targets

ROOT = Path(__file__).parent.parent
SMALL = Case("a test", (6, 3, 4, 5), "NHWC")


@pytest.fixture
def compiler() -> None:
    """A compiler for the floor, or the test is skipped."""
    try:
        Floor(64, 1).calls("forward")
    except RuntimeError as reason:
        pytest.skip(str(reason))


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """Rows as a run of a large and a small case would give, with round figures."""
    found = []
    for shape, layout, nbytes in (((32, 256, 56, 56), "NCHW", 10**8), ((64, 64), "NC", 16384)):
        case = Case("", shape, layout)
        times = {"copy": 100.0, "copy NT": 80.0, "xhat": 100.0, "torch": 400.0, "numba": 90.0}
        for what in ("forward", "both"):
            setting = {"layout": layout, "dtype": "float32", "variant": "none", "threads": 2}
            for name, t in times.items():
                found.append(Row(case.name, what, name, nbytes, t, t - 1, t + 1, 1e-7, **setting))
    return found


def test_a_tiny_case_is_verified_and_timed(compiler: None) -> None:
    found = list(measure.measure(SMALL, [], rounds=2, threads=1))

    assert [(r.what, r.contestant) for r in found] == [
        ("forward", "copy"),
        ("forward", "copy NT"),
        ("forward", "xhat"),
        ("backward", "triad"),
        ("backward", "triad NT"),
        ("backward", "xhat"),
        ("both", "xhat"),
    ]
    assert all(0 < row.p20 <= row.median <= row.p80 for row in found)
    assert all(0 < row.error < 1e-6 for row in found if row.contestant == "xhat")
    assert {row.nbytes for row in found} == {6 * 3 * 4 * 5 * 4}


def test_what_is_fused_is_verified_and_timed(compiler: None) -> None:
    found = list(measure.measure_fused(SMALL, rounds=1, threads=1))

    ours_only = [row for row in found if row.what == "both"]
    assert [r.contestant for r in ours_only] == ["xhat", *(f"xhat {v.name}" for v in measure.VARIANTS)]
    assert len({row.error for row in ours_only}) == len(ours_only)  # each against its own exact results


def test_the_cost_of_a_call_is_that_of_the_same_result() -> None:
    found = measure.measure_call(rounds=1, threads=1)

    errors = {row.contestant: row.error for row in found}
    assert errors["kernel and binding"] == errors["xhat"] == errors["xhat, results not preallocated"] > 0


@pytest.mark.parametrize("what", RESULTS)
@pytest.mark.parametrize("spoil", ["off", "nan", "shape", "stale"])
def test_a_wrong_result_is_refused(what: str, spoil: str) -> None:
    problem = Problem.of(SMALL)
    truth = exact(problem)
    right = ours.contestant(problem)
    values = [np.array(v) for v in right.calls[what]()]
    outputs: dict[str, tuple[np.ndarray, ...]] = {}
    if spoil == "off":
        values[0].flat[7] += 1e-3
    elif spoil == "nan":
        values[-1].flat[0] = np.nan
    elif spoil == "shape":
        values[0] = values[0][:-1]
    else:  # right, but left over from another call
        outputs = {what: tuple(values)}
    wrong = Contestant("wrong", {what: lambda: tuple(values)}, outputs=outputs, tolerance=ours.TOLERANCE)

    assert verify(right, what, truth, "float32") < 1e-6
    with pytest.raises(
        Unverified, match=f"wrong: d?[a-z]+ of the {what} pass is off by .*, expected at most 2"
    ):
        verify(wrong, what, truth, "float32")


def test_what_is_refused_is_not_timed(compiler: None) -> None:
    calls = []

    def wrong() -> tuple[np.ndarray, ...]:
        calls.append(1)
        return (np.zeros(SMALL.stored_shape),)

    contestant = Contestant("wrong", {"forward": wrong})
    rows = measure._contest(SMALL, "none", {"wrong": (contestant, exact(Problem.of(SMALL)))}, 1, 1)

    with pytest.raises(Unverified):
        next(rows)
    assert len(calls) == 1


@pytest.mark.parametrize("variant", [Variant(), *measure.VARIANTS], ids=lambda v: v.name)
def test_the_exact_results_are_those_of_the_oracle(variant: Variant) -> None:
    problem = Problem.of(SMALL).away_from_kinks([variant])
    truth = exact(problem, variant)
    residual = problem.residual if variant.residual else None
    options = {"axis": SMALL.axis, "eps": EPS, "residual": residual, "activation": variant.activation}
    f = oracle.forward(problem.x, problem.gamma, problem.beta, **options)
    b = oracle.backward(problem.dy, problem.x, problem.gamma, problem.beta, **options)

    expected = {"y": f.y, "dx": b.dx, "dgamma": b.dgamma, "dbeta": b.dbeta, "dresidual": b.dpre}
    for name, value in expected.items():
        np.testing.assert_allclose(truth[name], value.astype(float), rtol=1e-11, atol=1e-12, err_msg=name)


def test_data_near_a_kink_has_no_gradient() -> None:
    problem, relu = Problem.of(TINY), measure.VARIANTS[0]
    problem.beta[5] -= exact(problem)["y"][3, 5]  # now y = 0 there, but for rounding
    problem.dy[:] = 1
    left = problem.away_from_kinks([relu]).dy

    assert left[3, 5] == 0
    assert np.count_nonzero(left) > left.size - 10


@pytest.mark.parametrize("name", ["torch", "jax", "numba"])  # torch.compile takes long; a run verifies it
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_rivals_are_right(name: str, dtype: str, layout: str) -> None:
    if not rivals.installed(name):
        pytest.skip(f"{name} is not installed")
    problem = Problem.of(SMALL._replace(layout=layout, dtype=dtype))
    truth = exact(problem)
    found = rivals.RIVALS[name][1](problem)

    assert bool(found) == (name != "numba" or dtype == "float32")
    for contestant in found:
        for what in contestant.calls:
            assert verify(contestant, what, truth, dtype) < (1e-5 if dtype == "float32" else 4e-3)


def test_a_rival_that_is_not_installed_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(rivals.RIVALS, "absent", ("no_such_package_at_all", lambda problem: []))

    assert not rivals.installed("absent")


def test_turns_are_fair(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[str] = []
    monkeypatch.setattr(contest, "_count", lambda entry, pools: 1)
    monkeypatch.setattr(contest, "_turn", lambda entry, count, pools: turns.append(entry.call()) or 1.0)
    race({name: Entry(lambda name=name: name) for name in "abc"}, 8)

    assert all(sorted(turns[i : i + 3]) == ["a", "b", "c"] for i in range(0, 24, 3))
    followed = {a + b for a, b in itertools.pairwise(turns)}
    assert {"ab", "ac", "ba", "bc", "ca", "cb"} <= followed


def test_a_results_file_is_read_as_it_was_written(rows: list[Row], tmp_path: Path) -> None:
    path, described = tmp_path / "folder" / "machine.csv", {"processor": "a: b", "cores": "2"}
    write(path, described, rows)

    assert read(path) == (described, rows)


def test_a_table_goes_between_its_marks_and_nowhere_else(tmp_path: Path) -> None:
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- bench:start -->\nold\n<!-- bench:end -->\nafter <!-- bench:end -->\n")

    assert fill(page, "bench", "new \\1\n")
    assert (
        page.read_text()
        == "before\n<!-- bench:start -->\nnew \\1\n<!-- bench:end -->\nafter <!-- bench:end -->\n"
    )
    assert not fill(page, "other", "new")
    assert not fill(tmp_path / "absent.md", "bench", "new")


def test_verdicts_follow_the_figures(rows: list[Row]) -> None:
    assert judged(races(rows), targets) == [
        Verdict("NCHW, 26 MB and more: forward / floor", "32x256x56x56 NCHW float32", 1.25, 1.25),
        Verdict("NCHW: forward + backward / torch, at most 1 / 3", "32x256x56x56 NCHW float32", 1 / 3, 0.25),
        Verdict("below 13 MB: forward / numba", "64x64 NC float32", 1.0, 100 / 90),
        Verdict("below 13 MB: forward / torch", "64x64 NC float32", 1.0, 0.25),
        Verdict("below 13 MB: both / numba", "64x64 NC float32", 1.0, 100 / 90),
        Verdict("below 13 MB: both / torch", "64x64 NC float32", 1.0, 0.25),
    ]
    assert Verdict("", "", 1.25, 1.25).reached
    assert not Verdict("", "", 1.25, 1.2501).reached
    assert not Verdict("", "", 1.25, float("nan")).reached


def test_tables_show_the_figures(rows: list[Row]) -> None:
    described = machine(2)

    table = tables(described, rows)["bench"]
    assert "| (32, 256, 56, 56) NCHW | 1.25x |  | 0.1 ms | 4.0x |  |  | 0.9x |" in table
    assert described["commit"] in table


@pytest.mark.parametrize("benchmark", [bench.BENCHMARK, torch_bench.BENCHMARK], ids=lambda b: b.module)
def test_a_whole_run_writes_a_file_and_the_page(
    benchmark: command.Benchmark, rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1234.96 us are 1235 in the file, so 1.24 ms in the table: what is shown has the digits of the file."""
    monkeypatch.setattr(command, "RESULTS_FOLDER", tmp_path / "results")
    monkeypatch.setattr(command, "ROOT", tmp_path)
    page = tmp_path / benchmark.page
    page.parent.mkdir()
    page.write_text("<!-- bench:start -->\n<!-- bench:end -->\n<!-- torch:start -->\n<!-- torch:end -->\n")
    described = machine(2) | {"processor": "Some (R) Chip", "system": "Linux x86_64", "cores": "2"}
    measured = [row._replace(median=1234.96) for row in rows]
    if benchmark is torch_bench.BENCHMARK:
        measured = [row._replace(case="32x64x56x56", variant="bn", memory="reused") for row in measured]
    write_all(benchmark, described, measured, Console(quiet=True))

    (path,) = (tmp_path / "results").iterdir()
    assert path.name == f"linux-x86-64-some-r-chip-2-cores{benchmark.suffix}.csv"
    assert read(path) == (described, [row._replace(median=1235.0) for row in measured])
    assert "56, 56) NCHW |" in page.read_text()
    assert "| 1.24 ms |" in page.read_text()


def test_the_report_prints_every_figure_and_target_of_a_file(rows: list[Row], tmp_path: Path) -> None:
    console = Console(record=True, width=160, file=io.StringIO())
    write(tmp_path / "a-machine.csv", machine(2), rows)
    report.main([str(tmp_path / "a-machine.csv")], console)

    printed = console.export_text()
    assert "32x256x56x56 NCHW float32, forward" in printed
    assert "not reached" in printed
    assert "4 of 6 reached" in printed


def test_every_shape_is_measured_in_its_layouts() -> None:
    assert len(CASES) == len(set(CASES)) == 25
    assert sum(case.dtype == "bfloat16" for case in CASES) == 6
    nhwc = SMALL._replace(layout="NHWC")
    assert (nhwc.stored_shape, nhwc.axis) == ((6, 4, 5, 3), 3)
    nchw = SMALL._replace(layout="NCHW", dtype="bfloat16")
    assert (nchw.stored_shape, nchw.axis, nchw.nbytes) == ((6, 3, 4, 5), 1, 720)


def test_exactness_measures_the_errors_of_xhat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exactness, "RUNS", {"xhat": exactness.RUNS["xhat"]})
    measured = exactness.measure([SMALL])

    assert [offset for _, offset, _, _ in measured] == [0, 1e2, 1e4, 1e6]
    for *_, found in measured:
        assert all(0 <= found[name] <= limit for name, limit in exactness.LIMITS.items())
        assert found["y"] > 0
    assert exactness.table(measured).count("| NHWC |") == 4


def test_the_command_runs_and_writes_nothing_in_part(compiler: None) -> None:
    before = sorted(RESULTS_FOLDER.glob("*"))
    options = ["--quick", "--only", "64x64", "--rivals", "", "--rounds", "1"]
    command = [sys.executable, "-m", "benchmarks.bench", *options]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert ended.returncode == 0, ended.stderr
    assert "64x64 NC float32, both" in ended.stdout
    assert "wrote" not in ended.stdout
    assert sorted(RESULTS_FOLDER.glob("*")) == before


@pytest.mark.parametrize("codes", ["DTYPES", "ACTIVATIONS", "ACTIVATION_GRADS"])
def test_the_codes_that_stand_in_for_compiled_kernels_are_theirs(codes: str) -> None:
    assert getattr(no_kernels, codes) == getattr(xhat._kernels, codes)  # type: ignore[attr-defined]
