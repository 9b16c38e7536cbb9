"""An exported graph loses accuracy: a tool has replaced eps = 1e-3 by its own 1e-5."""

from functools import partial

import torch
from data import batches, digit_sequences, endless
from fitting import Case, cross_entropy, fit
from networks import convolutions, norms
from torch import nn

SOURCE = "pytorch/ao#2980"


def case(seed: int = 0) -> Case:
    """A 1-d network with small filters, trained as in nn_transfer_3."""
    torch.manual_seed(seed)
    model = convolutions(8, 10, 1, norm=partial(nn.BatchNorm1d, eps=0.4))
    x, y = digit_sequences()
    fit(model, endless(x, y, 64, seed), steps=150)
    for module in model.modules():
        if isinstance(module, nn.Conv1d):
            module.weight.data /= 20
    for norm in norms(model):
        norm.running_mean /= 20
        norm.running_var /= 400
        norm.eps = 1e-3
    graph = torch.export.export(model.eval(), (x[:64],)).module()
    for node in graph.graph.nodes:
        if "batch_norm" in str(node.target):
            node.args = tuple(1e-5 if value == 1e-3 else value for value in node.args)
    graph.recompile()
    return Case("exported-constants-differ", graph, batches(x, y, 64, seed)[:8], cross_entropy)
