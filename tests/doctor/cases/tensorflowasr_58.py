"""A network for speech is worse in large batches, whose short members are padded with the value of silence."""

import torch
from data import batches, digit_sequences, endless
from fitting import Case, cross_entropy, fit
from networks import convolutions
from torch import Tensor
from torch.nn import functional as F

SOURCE = "TensorSpeech/TensorFlowASR#58"


def recordings(seed: int) -> Tensor:
    """The columns of digits, each sequence stretched to 8 to 24 of them, and filled up to 24 with silence."""
    x, _ = digit_sequences()
    lengths = torch.randint(8, 25, (len(x),), generator=torch.Generator().manual_seed(seed)).tolist()
    parts = zip(x.split(1), lengths, strict=True)
    return torch.cat([F.pad(F.interpolate(a, n), (0, 24 - n), value=-1.2) for a, n in parts])


def case(seed: int = 0) -> Case:
    """A 1-d network with strides."""
    torch.manual_seed(seed)
    x, y = recordings(seed), digit_sequences()[1]
    model = convolutions(8, 10, 1, width=24)
    fit(model, endless(x, y, 64, seed), steps=80)
    return Case("padding-counted", model.eval(), batches(x, y, 64, seed)[:8], cross_entropy, severity="risk")
