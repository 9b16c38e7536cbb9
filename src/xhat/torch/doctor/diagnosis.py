"""A diagnosis: what was found, in the terminal, as a dict, as a page; and the way to treat it.

Nothing is measured or judged here.
"""

from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xhat.errors import ArgumentError
from xhat.notebook import framed
from xhat.torch.doctor.findings import Finding, Unjudged, strict

if TYPE_CHECKING:
    from xhat.torch.doctor.measured import Measured
    from xhat.torch.doctor.treat import Treatment

__all__ = ["Diagnosis"]


@dataclass(frozen=True)
class Diagnosis:
    """What `diagnose` found about the batch norms of a model.

    Print it for the verdict, the modes and the findings.

    Attributes
    ----------
    model : str
        The class of the model.
    quantity : str
        What was compared: "loss", or "distance" (between outputs, relative to their size).
    batches : int
        The number of batches.
    modes : dict of str to float or None
        The mean loss in each mode, or without a loss the distance of its outputs from evaluation's. None for a mode
        that could not run.

        ``"evaluation"``
            The model in evaluation.
        ``"batch"``
            The same, but batch norms normalize by the batch's statistics.
        ``"pooled"``
            Evaluation with the moments of these batches as running statistics, on a copy.
        ``"train"``
            The model as training runs it.
    layers : list of dict
        Each batch norm with its signals, in the order of the first call.
    findings : list of Finding
        The most harmful first.
    not_judged : list
        The causes that could not be judged, and why: pairs ``(cause, reason)``.

    Examples
    --------
    >>> import torch
    >>> import xhat.torch as xt
    >>> model = torch.nn.BatchNorm1d(2).eval()
    >>> d = xt.diagnose(model, [torch.ones(4, 2)], progress=False)
    >>> sorted(d.modes)
    ['batch', 'evaluation', 'pooled', 'train']
    >>> d.layers[0]["layer"], d.batches
    ('', 1)
    """

    model: str
    quantity: str
    batches: int
    modes: dict[str, float | None]
    layers: list[dict[str, Any]]
    findings: list[Finding]
    not_judged: list[Unjudged]
    _measured: "Measured | None" = field(default=None, repr=False, compare=False)

    @property
    def healthy(self) -> bool:
        """Whether no finding is harmful."""
        return not any(finding.severity == "harmful" for finding in self.findings)

    @property
    def summary(self) -> str:
        """The verdict in one sentence."""
        if not self.layers and not self.findings:
            return f"{self.model} has no batch norm: there is nothing to judge."
        harmful = [finding for finding in self.findings if finding.severity == "harmful"]
        if harmful:
            first = harmful[0]
            more = f" and {len(harmful) - 1} more" if len(harmful) > 1 else ""
            proof = f" ({first.proof} with the remedy)" if first.proof else ""
            return f"Batch norm hurts this model: {first.cause}{more}{proof}."
        others = len(self.findings)
        seen = f"; {others} other finding{'s' * (others > 1)}" if others else ""
        return f"Batch norm does not hurt this model on these batches{seen}."

    def to_dict(self) -> dict[str, Any]:
        """Return the diagnosis as values that JSON can hold.

        Returns
        -------
        dict
            The attributes by name. None stands where a number is not finite, which JSON has no word for.
        """
        found: dict[str, Any] = strict(self.values())
        return found

    def values(self) -> dict[str, Any]:
        """Return the diagnosis as plain values, with NaN and infinity as they are.

        Returns
        -------
        dict
            The attributes by name, as the page shows them.
        """
        return {
            "healthy": self.healthy,
            "summary": self.summary,
            "quantity": self.quantity,
            "batches": self.batches,
            "model": self.model,
            "modes": dict(self.modes),
            "layers": [dict(layer) for layer in self.layers],
            "findings": [finding.values() for finding in self.findings],
            "not_judged": [unjudged._asdict() for unjudged in self.not_judged],
        }

    def to_html(self, path: "str | Path | None" = None) -> str:
        """Return the diagnosis as one self-contained page.

        Parameters
        ----------
        path : str or Path, optional
            A file that the page is also written to.

        Returns
        -------
        str
            The HTML.

        Raises
        ------
        ArgumentError
            If Jinja2 (the extra ``doctor``) is not installed.
        """
        from xhat.torch.doctor.page import render

        html: str = render(self.values())
        if path is not None:
            Path(path).write_text(html, encoding="utf-8")
        return html

    def _repr_html_(self) -> str | None:
        """The page in a notebook; without Jinja2 None, for which a notebook prints the diagnosis."""
        try:
            return framed(self.to_html())
        except ArgumentError:
            return None

    def treat(self) -> "Treatment":
        """Apply the remedies that are safe to the model.

        Returns
        -------
        Treatment
            Which remedies were applied, and which were not and why. Its ``undo`` takes them back.

        Raises
        ------
        ArgumentError
            If the diagnosis has no model, as those of `examine` and `watch`.

        Examples
        --------
        >>> import torch
        >>> import xhat.torch as xt
        >>> _ = torch.manual_seed(0)
        >>> from torch import nn
        >>> model = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1)).eval()
        >>> batches = [torch.randn(16, 2) + 5 for _ in range(4)]
        >>> d = xt.diagnose(model, batches, progress=False)
        >>> treatment = d.treat()
        >>> treatment.applied
        [('statistics-never-updated', 'recalibrated 1 layer with the moments of 4 batches')]
        >>> treatment.undo()
        >>> model[0].running_mean
        tensor([0., 0.])
        """
        from xhat.torch.doctor.treat import treat

        return treat(self)

    def __str__(self) -> str:
        try:
            import rich  # noqa: F401
        except ImportError:
            return self._plain()
        return self._rich()

    def _modes(self) -> list[tuple[str, str]]:
        shown = {
            name: "did not run" if value is None else f"{value:.4g}" for name, value in self.modes.items()
        }
        return list(shown.items())

    def _plain(self) -> str:
        lines = [self.summary]
        if self.batches:
            lines.append(f"{self.quantity}: " + ", ".join(f"{name} {value}" for name, value in self._modes()))
        return "\n".join([*lines, *self._findings()])

    def _rich(self) -> str:
        from rich.console import Console
        from rich.table import Table

        text = StringIO()
        if self.batches:
            table = Table(show_edge=False, pad_edge=False)
            table.add_column(f"{self.quantity}, {self.batches} batches")
            for name, _ in self._modes():
                table.add_column(name, justify="right")
            table.add_row(self.model, *[value for _, value in self._modes()])
            Console(file=text, width=100, color_system=None).print(table)
        rows = [line.rstrip() for line in text.getvalue().splitlines()]
        return "\n".join([self.summary, *rows, *self._findings()])

    def _findings(self) -> list[str]:
        return [line for finding in self.findings for line in ("", *_lines(finding))]


def _lines(finding: Finding) -> list[str]:
    """A finding in its lines: where, what, why, remedy, and the code of the remedy."""
    more = finding.evidence.get("layers", 0) - len(finding.layers)
    where = ", ".join(path or "the model" for path in finding.layers) + (
        f" and {more} more" if more > 0 else ""
    )
    proof = f" ({finding.proof})" if finding.proof else ""
    first, *code = finding.code.splitlines() or [""]
    return [
        f"{finding.severity}: {finding.cause}{proof}",
        f"  where   {where or 'the model'}",
        f"  what    {finding.symptom}",
        f"  why     {finding.why}",
        f"  remedy  {finding.remedy}  {first}".rstrip(),
        *[f"          {line}" for line in code],
    ]
