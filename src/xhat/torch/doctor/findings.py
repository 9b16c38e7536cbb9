"""What the doctor says: causes, findings, and the diagnosis that holds them.

Nothing is measured or judged here, and no torch is imported: a diagnosis can be read, stored and compared anywhere.
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

__all__ = ["CAUSES", "SEVERITIES", "Finding", "Proof", "Severity", "Unjudged", "by_severity", "strict"]

CAUSES: Mapping[str, str] = {
    "statistics-never-updated": "the running statistics still have their initial values",
    "statistics-not-converged": "too few steps were taken for this momentum",
    "statistics-of-other-weights": "the running statistics belong to other weights",
    "statistics-not-finite": "the running statistics hold NaN or infinity",
    "statistics-of-other-data": "the running statistics belong to other data",
    "batches-not-alike": "no single mean and variance fits all batches",
    "batches-too-small": "the statistics of a batch scatter too much",
    "dropout-before-batch-norm": "dropout changes the variance that a batch norm sees",
    "train-mode-in-evaluation": "a batch norm uses the batch's statistics in evaluation",
    "eval-mode-in-training": "a batch norm stays in evaluation mode while the model trains",
    "frozen-but-moving": "the parameters are frozen, and the running statistics move",
    "layer-used-more-than-once": "one batch norm normalizes several inputs in one forward pass",
    "padding-counted": "padding is part of the statistics",
    "dead-channels": "a channel is constant",
    "eps-dominates": "eps is as large as the variance",
    "digits-lost": "the mean is so large beside the deviation that digits are lost",
    "range-of-float16": "the running statistics do not fit into float16",
    "bias-before-batch-norm": "a bias is added that the batch norm subtracts again",
    "momentum": "the momentum is 0, None, or of the reversed convention",
    "one-value-per-channel": "a batch has one value per channel",
    "ranks-differ": "the ranks have different running statistics",
    "class-replaced": "a subclass was replaced by a class without its forward",
    "exported-in-train-mode": "an exported graph holds batch norms in training mode",
    "exported-constants-differ": "an exported graph holds other constants than the layers",
    "missing-statistics": "the state dict has parameters and no running statistics",
    "decay-on-gamma": "weight decay shrinks gamma or beta",
}
"""The causes that a finding can name, each with what it means. Programs can rely on these words."""

Severity = Literal["harmful", "risk", "note"]
SEVERITIES: tuple[Severity, ...] = ("harmful", "risk", "note")


class Proof(NamedTuple):
    """What a remedy changed on a copy of the statistics.

    Attributes
    ----------
    quantity : str
        What was compared: "loss", or "distance" (between outputs, relative to their size).
    before : float
        Its mean over the batches with the model as it is.
    after : float
        The same with the remedy.
    """

    quantity: str
    before: float
    after: float

    def __str__(self) -> str:
        return f"{self.quantity} {self.before:.4g} -> {self.after:.4g}"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a model's batch norms, or may become so.

    Attributes
    ----------
    cause : str
        One of `CAUSES`.
    severity : {"harmful", "risk", "note"}
        ``"harmful"``
            The remedy made the loss or the output better, and ``proof`` has by how much.
        ``"risk"``
            It will hurt in the situation that ``symptom`` names.
        ``"note"``
            It is worth knowing.
    layers : tuple of str
        The paths of the layers, the most affected first.
    symptom : str
        One sentence with numbers: what was seen.
    evidence : mapping
        The numbers behind it, by name.
    why : str
        One sentence: how this cause leads to this symptom.
    remedy : str
        One sentence: what to do.
    code : str
        The remedy as one or a few lines of Python.
    proof : Proof or None
        What was compared (``quantity``), and its values before and after the remedy; None where nothing was compared.

    Raises
    ------
    ValueError
        If the cause is not one of `CAUSES`.

    Examples
    --------
    >>> import torch
    >>> import xhat.torch as xt
    >>> state = torch.nn.BatchNorm1d(1).state_dict()
    >>> state["running_var"][0] = float("nan")
    >>> d = xt.examine(state)
    >>> finding = d.findings[0]
    >>> finding.cause, finding.severity
    ('statistics-not-finite', 'harmful')
    >>> print(finding.code)
    xt.recalibrate(model.eval(), batches)
    """

    cause: str
    severity: Severity
    layers: tuple[str, ...]
    symptom: str
    evidence: Mapping[str, Any]
    why: str
    remedy: str
    code: str
    proof: Proof | None = None

    def __post_init__(self) -> None:
        if self.cause not in CAUSES:
            raise ValueError(f"Finding: cause is {self.cause!r}, expected one of {', '.join(CAUSES)}.")

    def to_dict(self) -> dict[str, Any]:
        """Return the finding as values that JSON can hold.

        Returns
        -------
        dict
            The attributes by name. None stands where a number is not finite.
        """
        found: dict[str, Any] = strict(self.values())
        return found

    def values(self) -> dict[str, Any]:
        """Return the finding as plain values, with NaN and infinity as they are.

        Returns
        -------
        dict
            The attributes by name.
        """
        found = asdict(self) | {"layers": list(self.layers), "evidence": dict(self.evidence)}
        found["proof"] = None if self.proof is None else self.proof._asdict()
        return found


def strict(value: Any) -> Any:
    """The same for JSON: None for NaN and infinity, Python's numbers for NumPy's, text for what is neither."""
    if isinstance(value, Mapping):
        return {str(key): strict(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [strict(inner) for inner in value]
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):  # NumPy's too
        return float(value) if math.isfinite(value) else None
    return strict(value.item()) if hasattr(value, "item") else str(value)


class Unjudged(NamedTuple):
    """A cause that could not be judged, and why.

    Attributes
    ----------
    cause : str
        One of `CAUSES`.
    reason : str
        One sentence.
    """

    cause: str
    reason: str


def by_severity(findings: "list[Finding]") -> "list[Finding]":
    """The findings, the most harmful first: by severity, then by what the remedy gains."""

    def key(finding: Finding) -> tuple[int, float]:
        gain = 0.0 if finding.proof is None else finding.proof.before - finding.proof.after
        return SEVERITIES.index(finding.severity), -gain if gain == gain else float("-inf")

    return sorted(findings, key=key)
