"""`python -m benchmarks.fold.frozen`: training steps with frozen statistics, folded and not.

The layers are torch's in evaluation, xhat's frozen by xt.freeze with their activations fused, and either of them folded
by xt.fold_frozen. A step is a forward and a backward pass; gamma and beta are trained. Gradients are compared with
those of torch's layers in float64 first. Times are least times of steps that alternate between the four, as ratios to
torch's; memory is what autograd keeps for the backward pass.
"""

import argparse
import copy
import time
from typing import Any

import torch
from torch import Tensor, nn

import xhat.torch as xt
from benchmarks.fold.networks import torchvision_with_its_schemas, with_random_statistics

NETWORKS = ("resnet18", "densenet121")


def step(model: nn.Module, x: Tensor) -> None:
    """A forward and a backward pass."""
    model.zero_grad(set_to_none=True)
    model(x).square().mean().backward()


def in_training(model: nn.Module) -> nn.Module:
    """In training mode, with its batch norms in evaluation (norm_eval)."""
    model.train()
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            m.eval()
    return model


def forms(model: nn.Module) -> dict[str, nn.Module]:
    """The four forms of a model."""
    ours = xt.freeze(xt.convert(copy.deepcopy(model))[0], affine=False)
    return {
        "torch": model,
        "torch, folded": xt.fold_frozen(copy.deepcopy(model))[0],
        "xhat": ours,
        "xhat, folded": xt.fold_frozen(copy.deepcopy(ours))[0],
    }


def off(model: nn.Module, exact: nn.Module, x: Tensor) -> float:
    """The relative error of all gradients together."""
    step(model, x)
    expected = {name: p.grad for name, p in exact.named_parameters()}
    pairs = [(p.grad.double(), expected[name]) for name, p in model.named_parameters() if p.grad is not None]
    total = sum(float(b.square().sum()) for _, b in pairs)
    return (sum(float((a - b).square().sum()) for a, b in pairs) / total) ** 0.5


def kept(model: nn.Module, x: Tensor) -> int:
    """The bytes that autograd keeps, each storage once, without parameters and buffers."""
    owned = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    found: dict[int, Tensor] = {}

    def pack(t: Tensor) -> Tensor:
        found[t.untyped_storage().data_ptr()] = t
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = model(x)
    del y
    return sum(t.untyped_storage().nbytes() for pointer, t in found.items() if pointer not in owned)


def main() -> None:
    """Prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torchvision: Any = torchvision_with_its_schemas()
    x = torch.randn(options.batch, 3, options.size, options.size, generator=torch.Generator().manual_seed(0))
    print(f"{tuple(x.shape)}, one thread, {options.steps} steps\n")
    print("| network | layers | folded | time of a step | kept for the backward pass | gradients off by |")
    print("|---|---|---|---|---|---|")
    for name in NETWORKS:
        torch.manual_seed(0)
        built, _ = with_random_statistics(torchvision.models.get_model(name, num_classes=10), [(x,)])
        models = forms(in_training(built))
        exact = copy.deepcopy(models["torch"]).double()
        step(exact, x.double())
        least = dict.fromkeys(models, float("inf"))
        for k in range(options.steps + 2):
            for form, model in models.items():
                start = time.perf_counter()
                step(model, x)
                least[form] = min(least[form], time.perf_counter() - start) if k > 1 else float("inf")
        memory = {form: kept(model, x) for form, model in models.items()}
        for form, model in models.items():
            count = sum("folded" in m.extra_repr() for m in model.modules()) // 2
            ratios = f"{least[form] / least['torch']:.2f} | {memory[form] / memory['torch']:.2f}"
            print(f"| {name} | {form} | {count} | {ratios} | {off(model, exact, x):.1e} |", flush=True)


if __name__ == "__main__":
    main()
