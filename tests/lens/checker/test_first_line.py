"""The first wrong line: found in planted mistakes, not claimed in doubt, and the code is as it was afterwards."""

import linecache
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lens.checker import wrong
from lens.checker.corpus.wrong.planted import PLANTED
from lens.checker.corpus.wrong.planting import Planted

from xhat.lens import check, check_file
from xhat.lens.checker.calling.adapter import Adapter
from xhat.lens.checker.calling.runner import Runner
from xhat.lens.checker.calling.runs import ArraySpec
from xhat.lens.checker.expected.probes import probes
from xhat.lens.checker.lines.experiment import Experiment
from xhat.lens.checker.lines.rewrite import HOOK, rewritten
from xhat.lens.checker.lines.watch import files_of, watching

# One program of each style; the benchmark has all of them.
QUICK = (
    *("steps:factor_2", "steps:dout_for_dxhat", "steps:sign_and_dbeta", "closed:gamma_forgotten"),
    *("three_terms:exchanged", "three_terms:own_eps_and_count", "spatial:dx_reshaped", "axes:batch_for_m"),
    *("loops:no_xhat", "in_place:plus", "layer:sign_of_dstd", "small_functions:projected"),
)
TORCH = ("torch_function:sum_for_mean", "torch_module:variance_detached")


def planted(key: str) -> Planted:
    return next(p for p in PLANTED if f"{p.program}:{p.key}" == key)


def lines_of(mistake: Planted, folder: Path) -> list[int]:
    path = folder / f"{mistake.program}_{mistake.key}.py"
    path.write_text(mistake.source(), encoding="utf-8")
    return sorted({line.line for line in check_file(path, layout=mistake.layout)[0].wrong_lines})


@pytest.mark.parametrize("key", QUICK)
def test_the_wrong_line_is_found(key: str, tmp_path: Path) -> None:
    mistake = planted(key)
    assert lines_of(mistake, tmp_path) == mistake.lines()


@pytest.mark.parametrize("key", TORCH)
def test_the_wrong_line_is_found_in_pytorch(key: str, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    mistake = planted(key)
    assert lines_of(mistake, tmp_path) == mistake.lines()


def functions(text: str, name: str) -> tuple[Any, Any]:
    """The program, with a source that can be found."""
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    scope: dict[str, Any] = {"np": np}
    exec(compile(text, name, "exec"), scope)
    return scope["forward"], scope["backward"]


def experiment(runner: Runner, watch: Any, wrong_outputs: set[str]) -> Experiment:
    return Experiment(runner, watch, probes(runner.spec.layout), 0, 1e-10, wrong_outputs)


def test_what_the_line_is_and_what_was_expected_is_said() -> None:
    text = wrong.edited(("dy used for dxhat in the variance path",))
    assert text is not None
    (line,) = check(*functions(text, "<spoken>")).wrong_lines
    assert (line.function, line.source) == ("backward", text.splitlines()[line.line - 1].strip())
    assert line.source.startswith("through_variance = -0.5 * (dy * xmu)")
    assert line.found == "γ⁻¹ × dσ²" and line.expected == "dσ²"


def test_nearly_every_value_of_right_code_is_recognized() -> None:
    forward, backward = functions(wrong.PROGRAM, "<right>")
    runner = Runner(forward, backward, Adapter(), ArraySpec("numpy", "float64", "NC"))
    with watching(runner, files_of(forward, backward)) as (watched, watch):
        e = experiment(watched, watch, set())
        assert e.observe() is None
    stored = [v for v in e.values if v.site.name and v.is_array and "running" not in v.site.name]
    unknown = [v.site.name for v in stored if not v.names]
    assert len(stored) > 20 and unknown == []


def test_an_unusual_but_right_step_is_not_blamed() -> None:
    unusual = "    half = 0.37 * dxhat\n    through_direct = half * rstd / 0.37\n"
    old = "    through_direct = dxhat * rstd\n"
    text = wrong.edited(("sign of the variance path",))
    assert text is not None and text.count(old) == 1
    text = text.replace(old, unusual)
    (line,) = check(*functions(text, "<unusual>")).wrong_lines
    assert line.source.startswith("dx = through_direct + through_mean - through_variance")


def test_code_is_as_it_was_after_it_was_watched() -> None:
    forward, backward = functions(wrong.PROGRAM, "<restored>")
    codes = forward.__code__, backward.__code__
    runner = Runner(forward, backward, Adapter(), ArraySpec("numpy", "float64", "NC"))
    with watching(runner, files_of(forward, backward)):
        assert forward.__code__ is not codes[0] and HOOK in forward.__globals__
    assert (forward.__code__, backward.__code__) == codes and HOOK not in forward.__globals__
    with pytest.raises(RuntimeError), watching(runner, files_of(forward, backward)):
        raise RuntimeError
    assert (forward.__code__, backward.__code__) == codes and HOOK not in forward.__globals__


def test_a_trace_function_of_others_is_left_alone() -> None:
    text = wrong.edited(("mean path dropped",))
    assert text is not None
    before = sys.gettrace()
    seen: list[str] = []

    def tracer(frame: Any, event: str, argument: Any) -> None:
        seen.append(event)

    sys.settrace(tracer)
    try:
        assert check(*functions(text, "<traced>")).wrong_lines
        assert sys.gettrace() is tracer and seen
    finally:
        sys.settrace(before)


def test_watched_code_computes_the_same_bits() -> None:
    forward, backward = functions(wrong.PROGRAM, "<bits>")
    runner = Runner(forward, backward, Adapter(), ArraySpec("numpy", "float64", "NC"))
    p = probes("NC")[1]
    plain = runner.run(p).outputs
    with watching(runner, files_of(forward, backward)) as (watched, watch):
        outputs = watched.run(p).outputs
        assert watch.seen()
    assert all(np.array_equal(plain[o], outputs[o]) for o in plain)


def test_source_that_is_gone_or_changed_is_said() -> None:
    text = wrong.edited(("mean path dropped",))
    assert text is not None
    scope: dict[str, Any] = {"np": np}
    exec(compile(text, "<gone>", "exec"), scope)
    verdict = check(scope["forward"], scope["backward"])
    assert verdict.wrong_lines == ()
    assert "The source of the code is not available, so no line of it was examined." in verdict.notes
    assert [f.output for f in verdict.formulas] == ["dx"]


@pytest.mark.parametrize(
    "statement",
    [
        "a = b = x + 1",
        "(a, b), c = (x, x), x",
        "a, *b = [x, x, x]",
        "a: float = x",
        "a = [v * 2 for v in (x, x)]",
        "a = (lambda v: v + 1)(x)",
        "a = f'{x:.2f} {x!r}'",
        "a = x if x > 0 else -x",
        "a = dict(k=x, **{'l': x})",
        "a = (b := x + 1) * 2",
        "a = [x, x][1:][0]",
        "a = -1 if not x else +x",
        "a = max(*[x, x + 1])",
        "a = {}; a['k'] = x; a['k'] += 1",
        "a = sum(v for v in (x, x))",
        "with np.errstate(all='ignore'):\n        a = x / 2",
        "try:\n        a = x / 0\n    except ZeroDivisionError:\n        a = x",
        "match x:\n        case 2.5:\n            a = x * 2\n        case _:\n            a = x",
        "for i in range(3):\n        a = x * i",
    ],
)
def test_rewritten_statements_compute_the_same(statement: str) -> None:
    text = f"def f(x):\n    {statement}\n    return a\n"
    scope: dict[str, Any] = {"np": np}
    exec(text, scope)
    plain = scope["f"](2.5)
    codes, sites = rewritten(text, "<statement>")
    seen: list[int] = []

    def hook(number: int, value: Any) -> Any:
        seen.append(number)
        return value

    scope[HOOK] = hook
    scope["f"].__code__ = codes["f", 1]
    assert scope["f"](2.5) == plain
    assert seen and max(seen) < len(sites)


def test_the_planted_mistakes_are_many_and_in_many_styles() -> None:
    assert len({(p.program, p.key) for p in PLANTED}) == len(PLANTED) >= 60
    assert len({p.program for p in PLANTED}) >= 10
    for mistake in PLANTED:
        assert mistake.lines(), mistake.key
        compile(mistake.source(), mistake.key, "exec")
