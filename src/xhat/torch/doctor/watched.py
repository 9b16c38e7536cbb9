"""What a watch counted -> findings and what could not be judged. Nothing is counted or run here.

No finding of a watch has a proof, as no loss is compared: only statistics that are not finite are called harmful.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from xhat.torch.doctor.findings import Finding, Unjudged
from xhat.torch.doctor.seen import Seen
from xhat.torch.doctor.trailing import not_converged, trailing

if TYPE_CHECKING:
    from xhat.torch.doctor.watch import Watch

__all__ = ["judge", "unseen"]


def judge(watch: "Watch") -> list[Finding]:
    """All findings."""
    rules = (
        _not_finite,
        _evaluating,
        _standing,
        _frozen,
        _blind,
        _repeated,
        _momentum,
        not_converged,
        trailing,
    )
    return [finding for rule in rules for finding in rule(watch)]


def unseen(watch: "Watch") -> list[Unjudged]:
    """What could not be judged, and why."""
    found, reused = [], "layer-used-more-than-once"
    if not watch.steps and watch.optimizers:
        found += [Unjudged("eval-mode-in-training", "the optimizer's step() was not called")]
    elif not watch.optimizers and not watch.forwards:
        reason = "without an optimizer, steps are seen between calls of the model, and it was not called"
        found += [Unjudged("eval-mode-in-training", reason)]
    elif not watch.steps:
        found += [Unjudged("eval-mode-in-training", "no parameter changed between the calls of the model")]
    if not watch.forwards:
        reason = "the model was not called with gradients, only its parts, or a compiled model that holds it"
        found += [Unjudged(cause, reason) for cause in (reused, "train-mode-in-evaluation")]
    elif not watch.called:
        found += [Unjudged(reused, "no call of a layer was seen: a compiled model does not run their hooks")]
    return found


def _listed(layers: Sequence[Seen]) -> tuple[str, ...]:
    return tuple(seen.path for seen in layers)


def _of(count: int, all_of_them: int) -> str:
    return f"in all {count} steps" if count == all_of_them else f"in {count} of {all_of_them} steps"


def _layers(count: int) -> str:
    return "1 layer" if count == 1 else f"{count} layers"


def _not_finite(watch: "Watch") -> Iterator[Finding]:
    """The first step, and the first layer in the order of the calls."""
    if watch.first.step is None:
        return
    step, names = watch.first.step, set(watch.first.names)
    calls = [*watch.called, *(seen for seen in watch.layers if seen not in watch.called)]
    statistics = [seen for seen in calls if f"{seen.path}.running_var" in names]
    bad = statistics or [seen for seen in calls if f"{seen.path}.weight" in names]
    when = f"after step {step}" if step else "before the first step"
    what = "its running variance" if statistics else "its weight, while all running statistics were finite,"
    others = f" {_layers(len(bad) - 1)} after it followed in the same step." if len(bad) > 1 else ""
    yield Finding(
        cause="statistics-not-finite",
        severity="harmful",
        layers=_listed(bad),
        symptom=f"{bad[0].path} was the first layer with NaN or infinity: {what} was not finite {when}.{others}",
        evidence={"step": step, "first": bad[0].path, "statistics": bool(statistics)},
        why="The input of this layer overflowed or held NaN."
        if statistics
        else "A gradient was not finite, and the optimizer's step carried it into the weights.",
        remedy=f"Find what the model computes in front of this layer in step {step}; skip such batches in the "
        "statistics, and recalibrate.",
        code="model, _ = xt.convert(model)\nfor m in model.modules():\n    if isinstance(m, xt.BatchNorm2d):\n        "
        'm.nonfinite = "skip"\nxt.recalibrate(model.eval(), batches)',
    )


def _evaluating(watch: "Watch") -> Iterator[Finding]:
    """The whole model in evaluation mode while its weights move."""
    n = watch.evaluating
    standing = [seen for seen in watch.layers if not seen.moved or seen.stood_from]
    if n < 2:
        return
    undone = "" if watch.evaluating_from else " It was in training mode again at the end."
    since = watch.evaluating_from or 0
    begun = f", from step {since} to the end" if since > 1 else ""
    yield Finding(
        cause="eval-mode-in-training",
        severity="risk",
        layers=_listed(standing or watch.layers),
        symptom=f"The model was in evaluation mode {_of(n, watch.steps)}{begun}, while its weights moved.{undone}",
        evidence={"steps": watch.steps, "in_evaluation": n, "from": since or None},
        why="In evaluation mode the running statistics stand still: they belong to the weights of earlier steps, and "
        "dropout is off.",
        remedy="Call model.train() after each evaluation, before the next step.",
        code="evaluate(model.eval())\nmodel.train()",
    )


def _standing(watch: "Watch") -> Iterator[Finding]:
    """Layers in evaluation mode, in a model in training mode."""
    standing = [seen for seen in watch.layers if seen.stood > 1 and seen.learns()]
    stopped = [seen for seen in standing if seen.moved]
    never = [seen for seen in standing if not seen.moved]
    for layers, severity, words in (
        (stopped, "risk", "stood still {of}, after they had moved in others"),
        (never, "note", "stood still {of}"),
    ):
        if layers:
            steps = max(seen.stood for seen in layers)
            yield Finding(
                cause="eval-mode-in-training",
                severity=severity,  # type: ignore[arg-type]
                layers=_listed(layers),
                symptom=f"The running statistics of {_layers(len(layers))} {words.format(of=_of(steps, watch.steps))}, "
                "while their weights moved.",
                evidence={"steps": watch.steps, "stood": steps},
                why="These layers were in evaluation mode in a model in training mode, or their graph leaves the "
                "statistics out; the inputs of the layers move with the weights in front of them.",
                remedy="Let them train, or freeze their parameters as well if they are meant to stay.",
                code="model.train()  # or: xt.convert(model); xt.freeze(model)",
            )


def _frozen(watch: "Watch") -> Iterator[Finding]:
    layers = [seen for seen in watch.layers if seen.frozen]
    if layers:
        steps = max(seen.frozen for seen in layers)
        yield Finding(
            cause="frozen-but-moving",
            severity="risk",
            layers=_listed(layers),
            symptom=f"The parameters of {_layers(len(layers))} were frozen, and their running statistics moved "
            f"{_of(steps, watch.steps)}.",
            evidence={"steps": watch.steps, "moved": steps},
            why="requires_grad=False stops the optimizer; the running statistics follow every batch in training mode.",
            remedy="Freeze the statistics too, or put these layers into evaluation mode after every model.train().",
            code="model, _ = xt.convert(model)\nxt.freeze(model.backbone)",
        )


def _blind(watch: "Watch") -> Iterator[Finding]:
    layers = [seen for seen in watch.layers if seen.blind]
    if layers:
        passes = max(seen.blind for seen in layers)
        yield Finding(
            cause="train-mode-in-evaluation",
            severity="note"
            if 0 < watch.steps <= passes
            else "risk",  # one in each step is meant, as in a GAN
            layers=_listed(layers),
            symptom=f"The running statistics of {_layers(len(layers))} moved in {passes} forward pass"
            f"{'es' * (passes > 1)} without gradients.",
            evidence={"passes": passes},
            why="A forward pass in training mode moves the running statistics, also under torch.no_grad(): those of a "
            "validation set or of a probe for shapes become part of the model.",
            remedy="Call model.eval() before such a pass, and model.train() after it.",
            code="model.eval()\nwith torch.no_grad():\n    model(x)\nmodel.train()",
        )


def _repeated(watch: "Watch") -> Iterator[Finding]:
    layers = sorted((seen for seen in watch.layers if seen.most > 1), key=lambda seen: -seen.most)
    if layers:
        passes = max(seen.repeated for seen in layers)
        yield Finding(
            cause="layer-used-more-than-once",
            severity="risk",
            layers=_listed(layers),
            symptom=f"{_layers(len(layers))} {'was' if len(layers) == 1 else 'were'} called up to {layers[0].most} "
            f"times in a forward pass, in {passes} of {watch.forwards} passes.",
            evidence={"calls": layers[0].most, "passes": passes, "forwards": watch.forwards},
            why="Each call normalizes by the statistics of its own input in training, and all share one pair of "
            "running statistics in evaluation, which fits none of them if the inputs differ.",
            remedy="Give each use its own batch norm, or concatenate the inputs into one call.",
            code="y1, y2 = model(torch.cat([x1, x2])).chunk(2)",
        )


def _momentum(watch: "Watch") -> Iterator[Finding]:
    layers = [seen for seen in watch.layers if seen.moved and seen.module.momentum == 0]
    if layers:
        yield Finding(
            cause="momentum",
            severity="risk",
            layers=_listed(layers),
            symptom=f"The momentum of {_layers(len(layers))} is 0: the running statistics stood still while the "
            f"weights moved in {watch.steps} steps.",
            evidence={"momentum": 0, "steps": watch.steps},
            why="running = (1 - momentum) running + momentum batch: with 0, no batch counts.",
            remedy="Set the momentum, and recalibrate.",
            code="for m in model.modules():\n    if hasattr(m, 'running_mean'):\n        m.momentum = 0.1\n"
            "xt.recalibrate(model.eval(), batches)",
        )
