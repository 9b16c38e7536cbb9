"""Exported graphs, and ranks that differ."""

from collections.abc import Iterator

from xhat.torch.doctor import thresholds as at
from xhat.torch.doctor.findings import Finding, Unjudged
from xhat.torch.doctor.graph import GraphNorm, is_initial
from xhat.torch.doctor.measured import Measured
from xhat.torch.doctor.rules.relevance import tried

__all__ = ["judge"]


def judge(measured: Measured) -> Iterator[Finding | Unjudged]:
    """`exported-in-train-mode`, `exported-constants-differ`, `ranks-differ`, `missing-statistics`."""
    yield Unjudged("missing-statistics", "a state dict is needed: xhat doctor checkpoint.pt")
    if measured.ranks == 1:
        yield Unjudged("ranks-differ", "there is one process")
    elif measured.differing:
        yield _ranks(measured)
    if not measured.graph:
        reason = "the model is not an exported graph"
        yield from (
            Unjudged(cause, reason) for cause in ("exported-in-train-mode", "exported-constants-differ")
        )
        return
    yield from _initial(measured, [x for x in measured.graph if is_initial(measured.model, x)])
    yield from _train_mode(measured, [x for x in measured.graph if x.training])
    yield from _constants(measured, measured.graph)


def _train_mode(measured: Measured, norms: list[GraphNorm]) -> Iterator[Finding]:
    if norms:
        proof = tried(measured, "exported-in-train-mode")
        yield Finding(
            "exported-in-train-mode", "harmful" if proof else "risk", tuple(x.path for x in norms[: at.LISTED]),
            f"{norms[0].path}{f' and {len(norms) - 1} more' if len(norms) > 1 else ''}: the graph normalizes by the "
            "batch's statistics, whatever the model's mode is.",
            {"layers": len(norms)},
            "The model was exported in training mode, and a graph keeps the mode in which it was made.",
            "Export the model in evaluation mode, or switch the graph.",
            "program = torch.export.export(model.eval(), args)\n"
            "torchao.quantization.pt2e.move_exported_model_to_eval(graph)    # a graph of quantization",
            proof,
        )  # fmt: skip


def _initial(measured: Measured, norms: list[GraphNorm]) -> Iterator[Finding]:
    if norms:
        proof = tried(measured, "statistics-never-updated")
        yield Finding(
            "statistics-never-updated", "harmful" if proof else "risk", tuple(x.path for x in norms[: at.LISTED]),
            f"{norms[0].path}{f' and {len(norms) - 1} more' if len(norms) > 1 else ''}: running_mean is 0 and "
            "running_var is 1 in the graph.",
            {"layers": len(norms)},
            "Training did not reach the buffers of the graph, or it was exported before; the proof is by the batch.",
            "Export again with the statistics of the trained model.",
            "program = torch.export.export(model.eval(), args)",
            proof,
        )  # fmt: skip


def _constants(measured: Measured, norms: list[GraphNorm]) -> Iterator[Finding]:
    best = min(
        (name for name in measured.trials if name.startswith("graph eps=")),
        key=lambda name: measured.trial(name).after, default=None,
    )  # fmt: skip
    proof = None if best is None else tried(measured, best)
    values = sorted({x.eps for x in norms})
    if not proof and len(values) < 2:
        return
    shown = ", ".join(f"{value:g}" for value in values)
    better = f", and the model is better with {best.removeprefix('graph ')}" if proof and best else ""
    yield Finding(
        "exported-constants-differ", "harmful" if proof else "note", tuple(x.path for x in norms[: at.LISTED]),
        f"{norms[0].path} and {len(norms) - 1} more: eps is {shown} in the graph{better}.",
        {"layers": len(norms), "eps": values},
        "A tool has rewritten the graph's batch norms with its own eps and momentum.",
        "Export again, and compare the constants of the graph with those of the layers.",
        "program = torch.export.export(model.eval(), args)",
        proof,
    )  # fmt: skip


def _ranks(measured: Measured) -> Finding:
    paths = [path for path, _ in measured.differing]
    worst = measured.differing[0][1]
    return Finding(
        "ranks-differ", "risk", tuple(paths[: at.LISTED]),
        f"{paths[0]} and {len(paths) - 1} more: the running statistics of {measured.ranks} ranks differ by up to "
        f"{worst:.2g} deviations.",
        {"layers": len(paths), "ranks": measured.ranks, "shift": worst},
        "Each rank has averaged its own batches; only one rank's statistics are saved.",
        "Merge them before evaluation and before a checkpoint.",
        "xt.merge_running_statistics(model)",
    )  # fmt: skip
