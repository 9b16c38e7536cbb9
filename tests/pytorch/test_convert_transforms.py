"""A converted model in torch's transforms: compiled, exported, checkpointed, distributed, in torch.func."""

import copy
from typing import Any

import blocks
import pytest
import torch
from comparing import data, made, results, same
from torch import nn
from torch.utils.checkpoint import checkpoint

import xhat.torch as xt

MODELS = [blocks.Residual, blocks.Functional, blocks.Leaky, lambda: blocks.sequence(blocks.sequence())]
NAMES = ["module", "function", "leaky", "sequence"]


@pytest.fixture(autouse=True)
def _forgotten() -> Any:
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("kind", MODELS, ids=NAMES)
def test_it_compiles_as_one_graph(kind: Any) -> None:
    theirs = made(kind)
    ours, _ = xt.convert(copy.deepcopy(theirs))
    same(torch.compile(ours, fullgraph=True, backend="aot_eager"), theirs)


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("kind", MODELS, ids=NAMES)
def test_it_is_exported_for_evaluation(kind: Any, strict: bool) -> None:
    theirs = made(kind)
    theirs(data())
    ours = xt.convert(copy.deepcopy(theirs).eval())[0]
    program = torch.export.export(ours, (data(),), strict=strict)
    torch.testing.assert_close(program.module()(data()), theirs.eval()(data()), rtol=1e-10, atol=1e-11)


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.block, self.reentrant = blocks.Residual(), reentrant

    def forward(self, x):
        return checkpoint(self.block, x, use_reentrant=self.reentrant) if self.training else self.block(x)


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_fused_block_can_be_checkpointed(reentrant: bool) -> None:
    torch.manual_seed(0)
    checkpointed = Checkpointed(reentrant).double()
    plain = copy.deepcopy(checkpointed.block)
    assert all(c.fused for c in xt.convert(checkpointed)[1])
    same(checkpointed, plain)


def test_torch_func_differentiates_fused_calls() -> None:
    theirs = made(blocks.Residual).eval()
    ours, _ = xt.convert(copy.deepcopy(theirs))

    def gradients(model: nn.Module) -> Any:
        state = dict(model.named_parameters())

        def loss(parameters: Any, x: torch.Tensor) -> torch.Tensor:
            return torch.func.functional_call(model, parameters, (x[None],)).cos().sum()

        return torch.func.vmap(torch.func.grad(loss), (None, 0))(state, data())

    for a, b in zip(gradients(ours).values(), gradients(theirs).values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-10)


def test_it_trains_under_distributed_data_parallel(tmp_path: Any) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        theirs = made(blocks.Residual)
        before = nn.parallel.DistributedDataParallel(copy.deepcopy(theirs))
        after = nn.parallel.DistributedDataParallel(xt.convert(copy.deepcopy(theirs))[0])
        assert all(c.converted and c.fused for c in xt.convert(before)[1])
        expected = results(theirs, data())
        for wrapped in (before, after):
            for a, b in zip(results(wrapped, data()), expected, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-11)
    finally:
        torch.distributed.destroy_process_group()


def test_autocast_and_channels_last_give_what_the_unfused_model_gives() -> None:
    torch.manual_seed(0)
    theirs = blocks.Residual()
    ours, _ = xt.convert(copy.deepcopy(theirs))
    x = data().float().to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        y = ours(x)
        expected = theirs(x)
    assert y.dtype == expected.dtype and y.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(y, expected, rtol=2e-2, atol=2e-2)
