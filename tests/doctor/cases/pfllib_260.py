"""Federated averaging of the parameters only: the statistics stay those of the first client."""

import copy
from itertools import islice

import torch
from data import batches, digit_sequences, endless
from fitting import Case, cross_entropy, fit
from networks import convolutions

SOURCE = "TsingZ0/PFLlib#260"


def case(seed: int = 0) -> Case:
    """A 1-d network; three clients train from one start, and their parameters are averaged."""
    torch.manual_seed(seed)
    start = convolutions(8, 10, 1)
    x, y = digit_sequences()
    fit(start, endless(x, y, 32, seed), steps=100, lr=1e-2)
    clients = [copy.deepcopy(start) for _ in range(3)]
    for k, client in enumerate(clients):
        own = y % 3 != k  # each client has two thirds of the classes
        fit(client, islice(endless(x[own], y[own], 16, seed + 100 * k), 60))
    server = copy.deepcopy(clients[0])
    for p, *theirs in zip(server.parameters(), *(client.parameters() for client in clients), strict=True):
        p.data = torch.stack([q.data for q in theirs]).mean(0)
    return Case("statistics-of-other-weights", server.eval(), batches(x, y, 16, seed)[:20], cross_entropy)
