"""A network for speech is worse in large batches, whose short members are padded with a constant."""

import torch
from data import batches, digit_sequences, endless
from networks import convolutions
from torch.nn import functional as F
from training import Case, cross_entropy, fit

SOURCE = "TensorSpeech/TensorFlowASR#58"


def case(seed: int = 0) -> Case:
    """Digits as sequences in a window of 24 columns: sixteen hold the same value in every batch."""
    torch.manual_seed(seed)
    x, y = digit_sequences()
    x = F.pad(x, (0, 16))
    model = convolutions(8, 10, 1, width=24, depth=2)
    fit(model, endless(x, y, 64, seed), steps=80)
    return Case("padding-counted", model.eval(), batches(x, y, 64, seed)[:8], cross_entropy, severity="risk")
