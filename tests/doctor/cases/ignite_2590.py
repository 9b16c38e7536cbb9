"""The teacher is an average of the student's parameters, copied after a warm-up; its buffers stay those of the copy."""

import copy

import torch
from data import batches, endless, table
from fitting import Case, cross_entropy, fit
from networks import mlp

SOURCE = "pytorch/ignite#2590"


def case(seed: int = 0) -> Case:
    """A perceptron for breast cancer: a warm-up of 60 steps, then 120 more with an average."""
    torch.manual_seed(seed)
    student = mlp(30, 2, width=48, depth=3)
    x, y = table("breast_cancer")
    fit(student, endless(x, y, 32, seed), steps=60)
    teacher = copy.deepcopy(student)

    def move(_: int) -> None:
        for a, p in zip(teacher.parameters(), student.parameters(), strict=True):
            a.data.lerp_(p.data, 0.1)

    fit(student, endless(x, y, 32, seed + 1000), steps=150, lr=2e-2, after=move)
    return Case("statistics-of-other-weights", teacher.eval(), batches(x, y, 32, seed), cross_entropy)
