"""Threads, forked processes, and inference mode: the same numbers wherever a layer runs."""

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from beside import TANGENT, X, layers, same
from conftest import in_a_process
from definition import generator
from torch import Tensor

import xhat.torch as xt


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Each call runs on a team of two OpenMP threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def trained(seed: int) -> list[Tensor]:
    """What three steps of a layer of one's own leave."""
    layer = xt.BatchNorm2d(16, activation="silu")
    g = generator(str(seed))
    for _ in range(3):
        x = torch.randn(8, 16, 24, 24, generator=g).requires_grad_()
        y = layer(x)
        y.square().sum().backward()
        assert x.grad is not None
    return [y.detach(), x.grad, *(p.grad for p in layer.parameters()), *layer.buffers()]  # type: ignore[misc]


@pytest.mark.usefixtures("two_threads")
def test_threads() -> None:
    """Forward and backward passes of several threads at once give the bits that each gives alone."""
    alone = [trained(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            together = list(pool.map(trained, range(4)))
            torch.testing.assert_close(together, alone, rtol=0, atol=0)


@pytest.mark.usefixtures("two_threads")
def test_threads_share_a_layer_in_evaluation() -> None:
    layer = xt.BatchNorm2d(16).eval()
    x = torch.randn(8, 16, 24, 24, generator=generator("shared"))
    with ThreadPoolExecutor(4) as pool, torch.no_grad():
        expected = layer(x)
        assert all(torch.equal(y, expected) for y in pool.map(layer, [x] * 32))


FORK = """
import json, warnings
import torch
import xhat.torch as xt

warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads: the very thing under test
layer = xt.BatchNorm2d(16)
x = torch.randn(8, 16, 24, 24, generator=torch.Generator().manual_seed(0))

def run():
    leaf = x.clone().requires_grad_()
    y = xt.batch_norm(leaf, None, None, layer.weight, layer.bias, True)
    y.square().sum().backward()
    return torch.stack((y.detach(), leaf.grad))

class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, i):
        return run()

before = run()
loader = torch.utils.data.DataLoader(Data(), batch_size=None, num_workers=2, multiprocessing_context="fork", timeout=60)
print(json.dumps([all(torch.equal(batch, before) for batch in loader), torch.equal(run(), before)]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_workers_of_a_loader_work_after_the_parent_has_used_the_kernels() -> None:
    assert json.loads(in_a_process(FORK, OMP_NUM_THREADS="2")) == [True, True]


# -------------------------------------------------------------------------------------------------- inference mode


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_inference_mode(training: bool) -> None:
    """A pass in it has torch's numbers, moves the statistics, and leaves a layer that learns afterwards."""
    ours, theirs = layers(training)
    with torch.inference_mode():
        y, expected = ours(X), theirs(X)
    assert y.is_inference() and expected.is_inference()
    same([y.clone(), *ours.buffers()], [expected.clone(), *theirs.buffers()])
    for layer in (ours, theirs):
        layer(X).backward(TANGENT)
    same(ours.weight.grad, theirs.weight.grad)


def test_tensors_made_in_inference_mode_are_kept_for_no_gradient() -> None:
    """As torch's layer says; the statistics are not kept, and may be such tensors."""
    for layer in layers():
        with torch.inference_mode():
            x = X.clone()
        with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
            layer(x)
    ours, theirs = layers(training=False)
    with torch.inference_mode():
        for layer in (ours, theirs):
            layer.running_mean, layer.running_var = layer.running_mean.clone(), layer.running_var.clone()
    x = X.clone().requires_grad_()
    expected = layers(training=False)[1](x)
    same(torch.autograd.grad(ours(x), x, TANGENT), torch.autograd.grad(expected, x, TANGENT))
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        theirs(x)
