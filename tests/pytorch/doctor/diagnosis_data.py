"""Dictionaries of diagnoses, written by hand, for tests of the page."""

from typing import Any

HOSTILE = (
    "</script><img src=x onerror=\"document.title='taken'\"><!-- {{ style }} {% raw %} & ' \u2028 \ud800"
)


def layer(path: str = "bn1", **changed: Any) -> dict[str, Any]:
    """A layer whose signals are those of a healthy network."""
    settings = {
        "layer": path,
        "class": "BatchNorm2d",
        "channels": 16,
        "calls": 1,
        "training": False,
        "frozen": False,
    }
    signals = {
        "shift": 0.11,
        "log_variance": 0.14,
        "icc": 0.8,
        "noise": 0.12,
        "left": 0.0,
        "m": 8192,
        "repair": None,
    }
    return settings | signals | changed


def finding(
    cause: str = "statistics-of-other-weights", severity: str = "harmful", **changed: Any
) -> dict[str, Any]:
    """A finding with a proof: the loss falls from 1.58 to 0.02."""
    found = {
        "cause": cause,
        "severity": severity,
        "layers": ["bn1"],
        "symptom": "The loss is 1.58 in evaluation, and 0.02 with the pooled statistics.",
        "evidence": {"log_variance": 3.7, "channels": [1, 2, 3]},
        "why": "Averaged parameters have other activations.",
        "remedy": "Compute the statistics anew.",
        "code": "xt.recalibrate(model, batches)",
        "proof": {"quantity": "loss", "before": 1.58, "after": 0.02},
    }
    return found | changed


def diagnosis(**changed: Any) -> dict[str, Any]:
    """A diagnosis of a network with averaged weights: one harmful finding, one layer."""
    plain = {
        "healthy": False,
        "quantity": "loss",
        "batches": 8,
        "model": "ResNet",
        "modes": {"evaluation": 1.58, "batch": 0.021, "pooled": 0.02, "train": 0.034},
        "layers": [layer()],
        "findings": [finding()],
        "not_judged": [{"cause": "decay-on-gamma", "reason": "No optimizer was given."}],
        "summary": "The running statistics belong to other weights.",
    }
    return plain | changed


def awkward() -> dict[str, Any]:
    """Everything at once: 200 layers, hostile names, NaN, infinity and None, all severities."""
    names = [f"encoder.stages.{i // 10}.blocks.{i % 10}.{'very_long_name_' * (i % 7)}bn" for i in range(199)]
    strange = {
        "shift": float("nan"),
        "log_variance": float("inf"),
        "icc": None,
        "noise": 1e30,
        "left": -1.5,
        "m": 1,
    }
    layers = [layer(HOSTILE, **strange, **{"class": HOSTILE}), *map(layer, names)]
    findings = [
        finding(layers=[HOSTILE, *names[:30]], symptom=HOSTILE, why=HOSTILE, remedy=HOSTILE, code=HOSTILE),
        finding("momentum", "risk", proof=None, evidence={HOSTILE: HOSTILE, "deep": {"a": [None, True]}}),
        finding("dead-channels", "note", layers=[], proof=None, evidence={}, code=""),
        finding(
            "statistics-not-finite", proof={"quantity": "loss", "before": float("nan"), "after": float("inf")}
        ),
    ]
    return diagnosis(
        model=HOSTILE,
        summary=HOSTILE,
        layers=layers,
        findings=findings,
        not_judged=[{"cause": "ranks-differ", "reason": HOSTILE}],
        modes={"evaluation": float("nan"), "batch": float("inf"), "pooled": -0.5, "train": None},
    )
