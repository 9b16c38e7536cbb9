"""`DomainBatchNorm`: separate layers on separate samples, in one call."""

import copy
from typing import Any

import pytest
import torch
from definition import Problem, definition, generator, relative
from torch import nn

import xhat.torch as xt
from xhat.errors import ArgumentError, DegenerateBatchError, XhatError

LABELS = torch.tensor([2, 0, 0, 2, 3, 3, 0, 2, 3])  # domain 1 has no samples


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_each_domain_has_its_own_batch(shared: bool, masked: bool) -> None:
    """y, gradients and running statistics."""
    g = generator("domains")
    x, residual, v = (torch.randn(9, 5, 3, generator=g, dtype=torch.float64) for _ in range(3))
    x = (x + 3 * LABELS.reshape(-1, 1, 1)).requires_grad_()
    mask = torch.rand(9, 1, 3, generator=g, dtype=torch.float64) + 0.1 if masked else None
    made = xt.DomainBatchNorm(xt.BatchNorm1d(5, momentum=1.0), 4, shared=shared).double()
    for p in made.parameters():
        nn.init.normal_(p, generator=g)
    y = made(x, LABELS, residual=residual, mask=mask)
    expected = torch.zeros_like(y)
    for k in (0, 2, 3):
        rows, layer = torch.nonzero(k == LABELS).flatten(), made.layers[k]
        own = Problem(x[rows], layer.weight, layer.bias, residual[rows], None if mask is None else mask[rows])
        found = definition(own)
        expected = expected.index_add(0, rows, found.y)
        torch.testing.assert_close(layer.running_mean, found.mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(
            layer.running_var, found.var * found.m / (found.m - 1), rtol=1e-12, atol=1e-12
        )
    assert relative(y, expected) < 1e-13
    inputs = [x, *(p for k in (0, 2, 3) for p in made.layers[k].parameters())]
    wanted = torch.autograd.grad((expected * v).sum(), inputs)
    for got, want in zip(torch.autograd.grad((y * v).sum(), inputs), wanted, strict=True):
        assert relative(got, want) < 1e-12
    assert made.layers[1].num_batches_tracked == 0
    assert len(list(made.parameters())) == (2 if shared else 8)


def test_evaluation_is_by_label() -> None:
    made = xt.DomainBatchNorm(xt.BatchNorm1d(5), 4).double()
    x = torch.randn(9, 5, dtype=torch.float64)
    made(x + LABELS.reshape(-1, 1), LABELS)
    y = made.eval()(x, LABELS)
    for i, k in enumerate(LABELS.tolist()):
        torch.testing.assert_close(y[i : i + 1], made.layers[k](x[i : i + 1]))
        torch.testing.assert_close(y[i : i + 1], made(x[i : i + 1], k))


def test_what_is_done_with_batch_norms_is_done_with_these() -> None:
    made = nn.ModuleList([xt.DomainBatchNorm(nn.BatchNorm1d(5), 2, shared=True)])
    model, changes = xt.convert(copy.deepcopy(made))
    assert [c.path for c in changes] == ["0.layers.0", "0.layers.1"]
    assert model[0].layers[0].weight is model[0].layers[1].weight
    xt.freeze(model)
    xt.unfreeze(model)
    labels = torch.tensor([0, 1, 0, 1, 1])
    x = torch.randn(5, 5)
    torch.testing.assert_close(model[0](x, labels), made[0](x, labels))
    xt.recalibrate(model[0].eval(), [x], forward=lambda m, b: m(b, labels), progress=False)
    torch.testing.assert_close(model[0].layers[1].running_var, x[labels == 1].var(0, correction=0))
    model.load_state_dict(made.state_dict())


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (torch.zeros(4), "labels are torch.float32, expected a tensor of integers, or one int from 0 to 1"),
        (7, "labels are 7, expected a tensor of integers, or one int from 0 to 1"),
        (torch.zeros(3).long(), r"labels have shape \(3,\), expected \(4,\), one for each sample"),
        (torch.tensor([0, 1, 2, 0]), "labels are from 0 to 2, expected 0 to 1"),
        (torch.tensor([0, 1, -1, 0]), "labels are from -1 to 1, expected 0 to 1"),
    ],
)
def test_labels_that_are_none_get_a_sentence(labels: Any, sentence: str) -> None:
    with pytest.raises(XhatError, match=f"^DomainBatchNorm: {sentence}"):
        xt.DomainBatchNorm(xt.BatchNorm1d(5), 2)(torch.ones(4, 5), labels)


def test_other_mistakes_get_a_sentence() -> None:
    with pytest.raises(ArgumentError, match="layer is Linear, expected a batch norm"):
        xt.DomainBatchNorm(nn.Linear(2, 2), 2)
    with pytest.raises(ArgumentError, match="domains is 0, expected an int of at least 1"):
        xt.DomainBatchNorm(nn.BatchNorm1d(2), 0)
    with pytest.raises(DegenerateBatchError, match=r"^BatchNorm1d 'layers.1': "):
        xt.DomainBatchNorm(xt.BatchNorm1d(5), 2)(torch.ones(3, 5), torch.tensor([0, 0, 1]))


def test_compiled_it_is_the_same() -> None:
    """A batch of one domain is one graph; labels, whose counts are data, break it."""
    made = xt.DomainBatchNorm(xt.BatchNorm1d(5), 2).double()
    x = torch.randn(9, 5, dtype=torch.float64)
    for labels, backend, whole in ((LABELS // 2, "eager", False), (1, "aot_eager", True)):
        twin = copy.deepcopy(made)
        compiled: Any = torch.compile(twin, backend=backend, fullgraph=whole)
        torch.testing.assert_close(compiled(x, labels), made(x, labels), rtol=1e-12, atol=1e-12)
        for name, value in made.state_dict().items():
            torch.testing.assert_close(twin.state_dict()[name], value, rtol=1e-12, atol=0)


def test_mapped_it_is_the_same() -> None:
    """vmap over models, with the labels of one batch for all of them."""
    models = [xt.DomainBatchNorm(xt.BatchNorm1d(5), 4).double() for _ in range(2)]
    parameters, buffers = torch.func.stack_module_state(models)
    x = torch.randn(2, 9, 5, dtype=torch.float64)
    for labels in (LABELS, 1):
        call = torch.func.vmap(
            lambda p, b, t, labels=labels: torch.func.functional_call(models[0], (p, b), (t, labels))
        )
        for k, y in enumerate(call(parameters, buffers, x)):
            torch.testing.assert_close(y, models[k](x[k], labels), rtol=1e-12, atol=1e-12)
            for name, value in models[k].named_buffers():
                torch.testing.assert_close(buffers[name][k], value, rtol=1e-12, atol=0)
