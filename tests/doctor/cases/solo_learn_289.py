"""Weight decay is applied to all parameters, gamma and beta included."""

import torch
from data import batches, endless, patches
from fitting import Case, cross_entropy, fit
from networks import residual

SOURCE = "vturrisi/solo-learn#289"


def case(seed: int = 0) -> Case:
    """AdamW for all parameters of a small ResNet."""
    torch.manual_seed(seed)
    model = residual(4)
    x, y = patches()
    fit(model, endless(x, y, 32, seed), steps=60)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.05)
    data = batches(x, y, 32, seed)[:8]
    return Case("decay-on-gamma", model.eval(), data, cross_entropy, optimizer, severity="note")
