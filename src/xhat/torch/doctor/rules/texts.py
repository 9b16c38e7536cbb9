"""Why running statistics that do not fit hurt, and the remedies, by cause. No code."""

from typing import NamedTuple

__all__ = ["TEXTS", "Text"]


class Text(NamedTuple):
    """Why a cause hurts, the remedy, and its code."""

    why: str
    remedy: str
    code: str


_RECALIBRATE = "xt.recalibrate(model.eval(), batches)"
TEXTS = {
    "statistics-not-finite": Text(
        "One batch with NaN or infinity reached the layer, which a running average never forgets; negative variances "
        "come from differences of checkpoints.",
        "Recalibrate the layer, and leave such batches out of its statistics.",
        f'{_RECALIBRATE}\nlayer.nonfinite = "skip"    # after xt.convert(model)',
    ),
    "statistics-never-updated": Text(
        "No training step has moved them, or they were not saved, copied or averaged with the parameters.",
        "Recalibrate, and save and copy the buffers with the parameters.",
        _RECALIBRATE,
    ),
    "momentum": Text(
        "momentum is the weight of the new batch: 0 keeps the old statistics, and .9 or .99 keeps the last batch only.",
        "Set torch's default, and recalibrate.",
        f"layer.momentum = 0.1\n{_RECALIBRATE}",
    ),
    "statistics-not-converged": Text(
        "The initial values still have a large weight in the running averages.",
        "Recalibrate, or train on, or use a larger momentum.",
        _RECALIBRATE,
    ),
    "dropout-before-batch-norm": Text(
        "Dropout raises the variance in training, and the running statistics keep it; in evaluation there is none.",
        "Put dropout behind the batch norm, or recalibrate in evaluation mode.",
        _RECALIBRATE,
    ),
    "statistics-of-other-data": Text(
        "The data have changed since the statistics were taken (or a copy of the parameters kept statistics of other "
        "data): already the first layer's input differs.",
        "Recalibrate on the data that the model will see.",
        _RECALIBRATE,
    ),
    "statistics-of-other-weights": Text(
        "The weights have changed since: they were averaged (EMA, SWA, federated), pruned, or moved faster than the "
        "average. Data of another contrast or noise look the same.",
        "Recalibrate after every change of the weights.",
        _RECALIBRATE,
    ),
}
