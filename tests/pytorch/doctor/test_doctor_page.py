"""The doctor's page as text: what stands in it, in which order, and that nothing given becomes markup."""

import re
from html.parser import HTMLParser
from typing import Any

import pytest
from pytorch.doctor.diagnosis_data import HOSTILE, awkward, diagnosis, finding, layer

from xhat.torch.doctor.findings import CAUSES
from xhat.torch.doctor.page import render
from xhat.torch.doctor.thresholds import NOT_ALIKE

VOID = {"meta", "link"}


class Read(HTMLParser):
    """The texts and bars of a page by the id or class around them; an element that is not closed is an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.bars: list[str] = []
        self.tags: set[str] = set()
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag == "i":
            self.bars.append(dict(attrs)["style"] or "")
        if tag not in VOID:
            self.open.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop()[0] == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1][0] not in ("style", "script") and data.strip():
            self.texts.append(" ".join(data.split()))

    def section(self, start: str, end: str) -> list[str]:
        return self.texts[self.texts.index(start) : self.texts.index(end)]


def read(**changed: Any) -> Read:
    return Read(render(diagnosis(**changed)))


def test_the_verdict_comes_first_then_modes_findings_layers_and_what_is_not_judged() -> None:
    shown = read(layers=[layer("stem.bn", shift=1.25)])
    assert shown.texts[:2] == ["ResNet: xhat doctor", "Skip to the findings"]
    order = [
        "The running statistics belong to other weights.", "The same batches in four modes",
        "Findings, the most harmful first", "The running statistics belong to other weights",
        "The layers, in the order of their first call", "stem.bn", "What could not be judged", "decay-on-gamma",
    ]  # fmt: skip
    assert [text for text in shown.texts if text in order] == order
    modes = shown.section("Evaluation", "How to read them")
    assert [text for text in modes if re.fullmatch(r"[\d.]+", text)] == ["1.58", "0.021", "0.02", "0.034"]
    proof = shown.section("proof", "remedy")
    assert proof == ["proof", "loss as it is", "1.58", "with the remedy", "0.02"]
    assert {"1.25", "0.14", "8,192", "BatchNorm2d, 16 channels, one call, in evaluation"} <= set(shown.texts)


def test_the_badge_is_the_worst_severity_and_a_note_is_no_harm() -> None:
    def badge(*severities: str, **changed: Any) -> list[str]:
        found = [finding("momentum", severity, proof=None) for severity in severities]
        return read(findings=found, **changed).section("xhat doctor", "ResNet")[2:3]

    assert badge("harmful", "risk") == ["harmful"]
    assert badge("risk", "note", "note") == ["risk"]
    assert badge("note") == badge() == ["healthy"]
    assert badge(layers=[]) == ["nothing to judge"]
    assert {"1 risk", "2 notes"} <= set(
        read(findings=[finding("momentum", s, proof=None) for s in ("risk", "note", "note")]).texts
    )


def test_bars_are_proportional_from_zero_and_reach_to_both_sides_if_a_value_is_negative() -> None:
    modes = {"evaluation": 3.0, "batch": 1.5, "pooled": -1.0, "train": 0.0}
    bars = read(modes=modes, findings=[], layers=[]).bars
    assert bars == [
        "--from:25.0%;--size:75.0%", "--from:25.0%;--size:37.5%", "--from:0.0%;--size:25.0%",
        "--from:25.0%;--size:0.0%",
    ]  # fmt: skip
    nothing = {"evaluation": 0.0, "batch": float("nan"), "pooled": None, "train": float("inf")}
    bars = read(modes=nothing, findings=[], layers=[]).bars
    assert bars == ["--from:0.0%;--size:0.0%", "--from:0%;--size:100%"]


def test_a_signal_below_its_threshold_has_a_short_bar() -> None:
    """The largest of small numbers is no full bar; a number above the threshold is the new scale."""
    small, large = layer("a", left=0.25, icc=NOT_ALIKE / 4), layer("b", left=0.5, icc=NOT_ALIKE * 2)
    bars = read(findings=[], modes={}, layers=[small]).bars
    assert (bars[2], bars[4]) == ("--from:0.0%;--size:25.0%", "--from:0.0%;--size:25.0%")
    bars = read(findings=[], modes={}, layers=[small, large]).bars
    assert (bars[2], bars[7]) == ("--from:0.0%;--size:12.5%", "--from:0.0%;--size:100.0%")
    assert (bars[4], bars[9]) == ("--from:0.0%;--size:25.0%", "--from:0.0%;--size:50.0%")


def test_a_layer_names_its_findings_and_a_shared_beginning_is_no_match() -> None:
    findings = [finding(layers=["a.bn"]), finding("momentum", "risk", layers=["a.bn", "b.bn"], proof=None)]
    shown = read(findings=findings, layers=[layer("a.bn"), layer("a.bn1"), layer("b.bn")])
    row = shown.section("The layers, in the order of their first call", "What the columns mean")
    assert [t for t in row if t in {"a.bn", "a.bn1", "b.bn"} or t.startswith("finding")] == [
        "a.bn", "finding 1", "finding 2", "a.bn1", "b.bn", "finding 2",
    ]  # fmt: skip


@pytest.mark.parametrize("cause", CAUSES)
def test_every_cause_has_its_meaning_as_the_title(cause: str) -> None:
    texts = read(findings=[finding(cause)]).texts
    assert CAUSES[cause] in [text[:1].lower() + text[1:] for text in texts]


def test_nothing_given_becomes_markup() -> None:
    given = awkward()
    text = render(given)
    shown = Read(text)
    assert "img" not in shown.tags
    assert text.count("</script>") == 1
    hostile = " ".join(HOSTILE.encode("utf-8", "backslashreplace").decode().split())
    assert sum(hostile in entry for entry in shown.texts) >= 9
    assert {"NaN", "∞", "−0.5", "–", "1e30", "−1.5"} <= set(shown.texts)
    assert "19 more" in shown.texts


def test_layers_that_a_finding_does_not_list_are_counted_and_the_model_itself_has_a_name() -> None:
    found = finding(layers=["", "a"], evidence={"layers": 9})
    shown = read(findings=[found], layers=[layer("", calls=0.0), layer("a", calls=2.0, m=12.5)])
    assert shown.section("where", "what") == ["where", "the model", "a", "and 7 more"]
    assert {"BatchNorm2d, 16 channels, never called, in evaluation", "12.5"} <= set(shown.texts)
    assert "BatchNorm2d, 16 channels, 2 calls, in evaluation" in shown.texts


def test_nothing_found_no_layers_and_no_batches_are_sentences() -> None:
    healthy = read(healthy=True, findings=[], not_judged=[], summary="Batch norm is not at fault.")
    assert "healthy" in healthy.texts
    assert "Nothing was found." in healthy.texts
    assert "What could not be judged" not in healthy.texts
    none = {"evaluation": None, "batch": None, "pooled": None, "train": None}
    empty = read(healthy=True, findings=[], layers=[], batches=0, modes=none)
    assert "The same batches in four modes" not in empty.texts
    assert "The model has no batch norm." in empty.texts
    assert "Nothing was found among what could be judged." in empty.texts
    assert not any("batch" in text for text in empty.section("0 batch norms", "Findings")[1:])
    assert any(text.startswith("No batches were measured") for text in empty.texts)


def test_what_is_unknown_is_left_out() -> None:
    """As for a checkpoint, which has neither calls nor modes nor signals."""
    nothing = dict.fromkeys(("calls", "training", "shift", "log_variance", "icc", "noise", "m", "repair"))
    shown = read(layers=[layer("bn", **nothing | {"left": 0.5})], findings=[])
    table = shown.section("The layers, in the order of their first call", "What could not be judged")
    assert table[1:7] == [
        "layer",
        "left",
        "bn",
        "BatchNorm2d, 16 channels",
        "left",
        "0.5",
    ]  # twice: for a phone
    assert read(layers=[layer("bn", frozen=True, **nothing | {"left": None})]).texts.count("layer") == 1


def test_a_distance_is_called_so() -> None:
    texts = read(
        quantity="distance", findings=[finding(proof={"quantity": "distance", "before": 0.4, "after": 0.0})]
    ).texts
    assert any(text.startswith("How far the outputs are") for text in texts)
    assert "distance as it is" in texts
