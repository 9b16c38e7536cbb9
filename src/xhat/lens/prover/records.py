"""The derivation, judged: every display of the source with its verdict and its correction.

How an equation is proved or refuted is in `prove`; the words of the corrections are in `corrections`.
"""

from dataclasses import dataclass
from functools import cache

from xhat.lens.prover import source
from xhat.lens.prover.corrections import CLAIMS
from xhat.lens.prover.expressions import spell_statement
from xhat.lens.prover.parse import parse
from xhat.lens.prover.prove import Step, Undecided, Witness, judge, verdict_of, worst

__all__ = ["Record", "derivation", "record"]

GIVEN = "a name: nothing is claimed"


@dataclass(frozen=True)
class Record:
    """A display of the source derivation with its verdict, the worst verdict of its steps.

    Attributes
    ----------
    id, title : str
        Its name, and what it is about.
    source : str
        The display in LaTeX, unchanged.
    claim : str
        The display in plain text, as it was parsed.
    verdict : str
        "holds", "notation slip", "wrong", or "holds for correction=" and the one.
    corrected : str or None
        The corrected display in LaTeX.
    words, short, reason : str
        The corrected display in words, the slips in a few words, and the reason.
    method : str
        How it was proved or refuted.
    witness : Witness or None
        Numbers that refute it.
    slips : tuple of str
        Slips of notation.
    steps : tuple of Step
        The verdict on each step.
    """

    id: str
    title: str
    source: str
    claim: str  # the display in plain text, as parsed
    verdict: str
    corrected: str | None
    words: str  # the corrected display in words
    short: str  # the slips in a few words
    reason: str
    method: str
    witness: Witness | None
    slips: tuple[str, ...]
    steps: tuple[Step, ...]


@cache
def derivation() -> tuple[Record, ...]:
    """Prove or refute every displayed equation of the source derivation.

    It takes several seconds, and the result is kept. Needs SymPy and mpmath (the extra ``lens``).

    Returns
    -------
    tuple of Record
        One record for each display, in order: its ``id``, ``title``, ``source`` in LaTeX, ``verdict``, ``corrected``
        LaTeX or None, ``reason``, ``method`` of the proof, and ``steps``.

    See Also
    --------
    derive : The same, printed.
    theorems : The closed forms of the code.

    Examples
    --------
    >>> import xhat.lens
    >>> records = xhat.lens.derivation()  # doctest: +SKIP
    >>> records[0].id, records[0].verdict  # doctest: +SKIP
    ('mean', 'holds')
    """
    return tuple(map(record, source.displays()))


@cache
def record(display: source.Display) -> Record:
    """One display, proved or refuted; its correction is proved in the same way."""
    claim = CLAIMS[display.id]
    if claim.corrected and any(step.verdict != "holds" for step in judge(claim.corrected)):
        raise Undecided(f"the correction of display {display.id!r} needs a correction")
    steps = judge(display.latex)
    slips = tuple(dict.fromkeys(slip for step in steps for slip in step.slips))
    if not steps and source.declared_loss() != "L":
        slips = (f"the loss is called L, declared as {source.declared_loss()}",)
    verdict = worst([step.verdict for step in steps] or [verdict_of({}, slips)])
    worst_step = next((step for step in steps if step.verdict == verdict), None)
    method, witness = (worst_step.method, worst_step.witness) if worst_step else (GIVEN, None)
    return Record(
        id=display.id,
        title=claim.title,
        source=display.latex,
        claim=spell_statement(parse(display.latex)),
        verdict=verdict,
        corrected=claim.corrected,
        words=claim.text,
        short=claim.short,
        reason=claim.reason,
        method=method,
        witness=witness,
        slips=slips,
        steps=steps,
    )
