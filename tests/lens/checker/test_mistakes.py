"""Every mistake of the catalogue is named, alone and together with any other, in programs with these mistakes.

The programs are made by editing text (see wrong.py). Pairs that can't be named are listed with the reason, and their
numbers show that there is nothing else to name. A run tests 200 pairs, drawn with a fixed seed; XHAT_ALL_PAIRS=1 tests
all of them.
"""

import os
import random
from pathlib import Path

import numpy as np
import pytest
from lens.checker import wrong
from lens.checker.wrong import MISTAKES, PROGRAM

from xhat.lens import check, check_file
from xhat.lens.checker.diagnosis.search import predictor_for
from xhat.lens.checker.expected.steps import CLOSED
from xhat.lens.checker.faults import CATALOGUE, TITLES, compatible, sets_of
from xhat.lens.checker.verdict import SECTIONS, Verdict
from xhat.lens.prover import source

SPECIMENS = Path(__file__).parent / "specimens"
ONE_PASS, FLOAT16 = "one-pass variance cancelling", "float16 accumulation"

# Pairs that a single mistake explains as well: the checker names this one.
ONE_READING = {
    ("mean path dropped", "variance path dropped"): "mean and variance paths both dropped",
    # the backward is the exact derivative of a forward with this sum
    (
        "sum where a mean is needed: var",
        "sum where a mean is needed: variance path",
    ): "sum where a mean is needed: var",
    # constant statistics have no paths, so the backward is exact
    (
        "running statistic used in training",
        "mean and variance paths both dropped",
    ): "running statistic used in training",
    # rstd^4 either way
    (
        "power of rstd wrong in the variance path",
        "square root missing in the backward",
    ): "square root missing in the backward",
    # float16 has too few digits to observe a cancellation
    (ONE_PASS, FLOAT16): FLOAT16,
    # these statistics are used for the running ones only
    ("channel axis transposed in the forward", ONE_PASS): "channel axis transposed in the forward",
}
# Pairs whose outputs are not finite, or whose statistics have the wrong shape.
NO_NUMBERS = {
    ("sum where a mean is needed: mu", ONE_PASS),
    ("channel axis transposed in the forward", FLOAT16),
}


def judged(*names: str) -> Verdict:
    text = wrong.edited(names)
    assert text is not None, names
    return check(*wrong.functions(text), like="torch")


def names_of(verdict: Verdict) -> list[set[str]]:
    """The alternative names of each mistake found; joined sets are split."""
    return [{part for name in finding.names for part in name.split(" + ")} for finding in verdict.mistakes]


def named_exactly(verdict: Verdict, names: tuple[str, ...]) -> bool:
    """All these names are found, every mistake found has one of them, and no error is unnamed."""
    found = names_of(verdict)
    return (
        verdict.status == 1
        and not verdict.unnamed
        and len(found) <= len(names)
        and all(one & set(names) for one in found)
        and set(names) <= set().union(*found)
    )


def hidden(pair: tuple[str, str]) -> bool:
    """Whether both together give the same numbers as one of them, or as the right program."""
    text = wrong.edited(pair)
    fewer = [wrong.edited((name,)) for name in pair] + [PROGRAM]
    apart = [name for name in pair if name != ONE_PASS]  # alone, its numbers are exact
    if len(apart) == 1:
        return not wrong.differ(text, PROGRAM)
    return any(not wrong.differ(text, other) for other in fewer)


def test_the_program_is_right() -> None:
    assert check(*wrong.functions(PROGRAM), like="torch")


@pytest.mark.parametrize("name", MISTAKES)
def test_each_mistake_is_named_alone(name: str) -> None:
    verdict = judged(name)
    assert len(verdict.mistakes) == 1 and named_exactly(verdict, (name,)), verdict.headline
    same = next((names for names in wrong.SAME if name in names), {name})
    assert names_of(verdict)[0] == same, verdict.headline


def chosen_pairs() -> set[tuple[str, str]]:
    pairs = wrong.pairs()
    drawn = pairs if os.environ.get("XHAT_ALL_PAIRS") else random.Random(0).sample(pairs, 200)
    return {*drawn, *ONE_READING} - NO_NUMBERS


@pytest.mark.parametrize("first", MISTAKES)
def test_two_mistakes_are_named_together(first: str) -> None:
    failures = []
    for pair in sorted(pair for pair in chosen_pairs() if pair[0] == first):
        if pair not in ONE_READING and hidden(pair):
            continue
        expected = (ONE_READING[pair],) if pair in ONE_READING else pair
        verdict = judged(*pair)
        if not named_exactly(verdict, expected):
            failures.append(f"{pair}: {verdict.headline}")
    assert not failures, "\n".join(failures)


def test_the_pairs_are_many_and_few_are_hidden() -> None:
    pairs = wrong.pairs()
    assert len(pairs) > 750
    assert sum(hidden(pair) for pair in pairs) < 60
    assert set(ONE_READING) | NO_NUMBERS <= set(pairs)


@pytest.mark.parametrize("pair", sorted(NO_NUMBERS))
def test_nothing_is_guessed_without_finite_numbers(pair: tuple[str, str]) -> None:
    verdict = judged(*pair)
    assert verdict.status == 1
    assert verdict.names <= set(pair)


@pytest.mark.parametrize(
    ("layout", "output"), [(la, o) for la in ("NC", "NCHW") for o in ("y", "dx", "dgamma", "dbeta")]
)
def test_the_names_of_the_catalogue_are_distinguished(layout: str, output: str) -> None:
    """The numbers of each entry are explained by its own name only, or by names known to be equivalent."""
    same = {name: names for names in wrong.SAME for name in names}
    same["xhat forgotten in dgamma"] = {"xhat forgotten in dgamma", "dgamma and dbeta exchanged"}
    same["dgamma and dbeta exchanged"] = same["xhat forgotten in dgamma"]
    # rstd^4 instead of rstd^3 is a missing root at one place: these two have an entry in common
    power = {"square root missing in the backward", "power of rstd wrong in the variance path"}
    predictor = predictor_for(layout, "float64", 0.4, True, 0)
    for chosen in sets_of(output, 1, predictor.traits):
        got = predictor.explain(output, predictor.predict(output, (), CLOSED, chosen), 1e-10, 2)
        names = {m.name for found in got for m in found}
        name = chosen[0].name
        if got == [()]:  # visible only by rounding, or in another output
            assert name == ONE_PASS or (output == "dgamma" and "backward_where" in dict(chosen[0].faults)), (
                name
            )
            continue
        assert name in names
        assert names <= same.get(name, {name}) | (power if name in power else set()), (name, names)


SPATIAL = {
    "spatial axes left out of a sum in the forward": ("mean = x.mean(axis=AXES", "mean = x.mean(axis=0"),
    "spatial axes left out of a sum in dx": ("m = x.size / x.shape[1]", "m = len(x)"),
    "spatial axes left out of a sum in dgamma": (
        "(dy * xhat).sum(axis=AXES), dy",
        "(dy * xhat).sum(axis=0), dy",
    ),
    "spatial axes left out of a sum in dbeta": ("dy.sum(axis=AXES)\n", "dy.sum(axis=0)\n"),
    "channel axis transposed in the forward": (
        "AXES, keepdims=True)\n    y =",
        "(0, 1, 2), keepdims=True)\n    y =",
    ),
    "channel axis transposed in dbeta": ("dy.sum(axis=AXES)\n", "dy.sum(axis=(0, 1, 2))\n"),
    "channel axis transposed in dx": (
        "dmean = -rstd * dxhat.sum(axis=AXES",
        "dmean = -rstd * dxhat.sum(axis=(0, 1, 2)",
    ),
}


@pytest.mark.parametrize("name", SPATIAL)
def test_mistakes_of_axes_are_named_on_images(name: str, tmp_path: Path) -> None:
    old, new = SPATIAL[name]
    text = (SPECIMENS / "images.py").read_text()
    assert text.count(old) == 1
    if name.startswith("channel axis transposed in the forward"):
        text = text.replace("mean = x.mean(axis=AXES", "mean = x.mean(axis=(0, 1, 2)")
    (tmp_path / "wrong.py").write_text(text.replace(old, new))
    (verdict,) = check_file(tmp_path / "wrong.py")
    assert verdict.names == {name}, str(verdict)


def test_every_mistake_points_to_a_display_of_the_source_and_its_heading() -> None:
    heading, headings = "", {}
    for display in source.displays():
        if display.words.startswith(("Path", "Finally")) or display.words[:1].isdigit():
            heading = display.words.split(" : ")[0].rstrip(" :,")
        headings[display.id] = heading
    assert {line for line, _ in TITLES.values()} == set(SECTIONS) <= set(headings)
    assert {line: headings[line] for line in SECTIONS} == SECTIONS
    assert all(remedy.endswith(".") for _, remedy in TITLES.values())


def test_every_mistake_of_the_catalogue_changes_something() -> None:
    positions, square = (predictor_for(layout, "float64", 0.4, True, 0) for layout in ("NCHW", "NC, square"))
    for mistake in CATALOGUE:
        predictor = square if mistake.needs == "square" else positions
        changed = [
            o
            for o in sorted(mistake.touches)
            if _differs(predictor.predict(o, (), CLOSED, (mistake,)), predictor.predict(o, (), CLOSED, ()))
        ]
        assert changed or mistake.name == ONE_PASS, mistake


def _differs(a, b) -> bool:  # type: ignore[no-untyped-def]
    return a.shape != b.shape or float(np.abs(a - b).max()) > 1e-3


def test_mistakes_with_one_fault_are_not_combined() -> None:
    first, *others = [m for m in CATALOGUE if m.name == "power of rstd wrong in the variance path"]
    assert all(not compatible((first, other)) for other in others)


def test_the_page_names_every_mistake() -> None:
    page = " ".join((Path(__file__).parents[3] / "docs" / "checker.md").read_text(encoding="utf-8").split())
    assert [name for name in TITLES if f"*{name}*" not in page] == []
