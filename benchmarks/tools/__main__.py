"""Other people's tools on converted networks, beside the same tools on torch's layers: the table of docs/works-with.md.

    python -m benchmarks.tools              print the table
    python -m benchmarks.tools --write      and put it into the page

A tool that is not installed is left out of what is printed, and its row in the page stays. Install them in an
environment of their own: pip install --no-deps opacus thop ptflops fvcore iopath yacs tabulate portalocker termcolor
backpack-for-pytorch einops unfoldNd captum pytorch-lightning lightning-utilities torchmetrics torchao opt-einsum
"""

import contextlib
import copy
import importlib.metadata
import io
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import xhat.torch as xt
from benchmarks.tools.cases import TOOLS, Tool

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "works-with.md"
BEGIN, END = "<!-- tools -->\n", "<!-- end of tools -->"
NETWORKS = {
    "ResNet-18": ("torchvision", "resnet18"),
    "MobileNetV3": ("timm", "mobilenetv3_small_100"),
    "DenseNet-121": ("torchvision", "densenet121"),
    "EfficientNet-B0": ("timm", "efficientnet_b0"),
}


def trained(model: nn.Module) -> nn.Module:
    """With running statistics that are no zeros and ones."""
    with torch.no_grad():
        for i in range(2):
            model.train()(torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(i)) + i)
    return model


def networks() -> dict[str, nn.Module]:
    """The networks, with random parameters."""
    sys.path.insert(0, str(ROOT / "tests" / "pytorch"))
    import architectures

    found = {}
    for name, (package, architecture) in NETWORKS.items():
        torchvision: Any = architectures.torchvision()
        torch.manual_seed(0)
        timms = package == "timm"
        made = (
            architectures.network(architecture)
            if timms
            else getattr(torchvision.models, architecture)(num_classes=10)
        )
        found[name] = trained(made)
    return found


def chain() -> nn.Module:
    """A convolution, a batch norm, a ReLU and a linear layer."""
    torch.manual_seed(0)
    layers = (
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(64, 2),
    )
    return trained(nn.Sequential(*layers))


def result(tool: Tool, model: nn.Module) -> Any:
    """What the tool gives, or its error."""
    torch.manual_seed(1)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            return tool.run(copy.deepcopy(model))
    except Exception as error:
        return error


def said(value: Any) -> str:
    """An error in one line, a text, or nothing for numbers."""
    if isinstance(value, Exception):
        text = re.sub(r"\s+", " ", str(value)).replace("|", "/")
        text = re.sub(r"(\w+BatchNorm\w*|BatchNorm\w*) '[^']*'", r"\1 '…'", text)
        return f"`{type(value).__name__}`: {text[:300]}{'…' if len(text) > 300 else ''}"
    return value if isinstance(value, str) else "a result"


def compared(ours: Any, theirs: Any) -> str:
    """What happens, in words."""
    if isinstance(ours, tuple) and isinstance(theirs, tuple):
        same = compared(ours[0], theirs[0])
        return same if ours[1] == theirs[1] else "OTHER NAMES"
    if isinstance(ours, Tensor) and isinstance(theirs, Tensor):
        off = float((ours - theirs).norm() / theirs.norm())
        return "as with torch's layers" if off < 1e-4 else f"DIFFERS by {off:.2g}"
    if said(ours) == said(theirs):
        return f"as with torch's layers: {said(ours)}"
    return f"{said(ours)}; with torch's layers: {said(theirs)}"


def row(tool: Tool, models: dict[str, nn.Module]) -> str | None:
    """A row of the table; None if the tool is not installed."""
    try:
        version = importlib.metadata.version(tool.package)
    except importlib.metadata.PackageNotFoundError:
        if " " not in tool.package:
            return None
        version = ""
    found: dict[str, list[str]] = {}
    for name, model in models.items():
        ours, theirs = result(tool, xt.convert(copy.deepcopy(model))[0]), result(tool, model)
        found.setdefault(compared(ours, theirs), []).append(name)
    one = len(found) == 1
    text = "<br>".join(what if one else f"{', '.join(names)}: {what}" for what, names in found.items())
    return f"| {tool.package} {version.split('+')[0]} | {tool.name} | {text} |".replace("  ", " ")


def main() -> None:
    """Prints the table, and writes it into the page with --write."""
    torch.set_num_threads(1)
    models, small = networks(), {"a chain": chain()}
    rows = {}
    for tool in TOOLS:
        line = row(tool, small if tool.chain else models)
        print(line or f"{tool.package} is not installed", flush=True)
        if line is not None:
            rows[tool.name] = line
    if "--write" not in sys.argv:
        return
    text = PAGE.read_text("utf-8")
    before, rest = text.split(BEGIN)
    table, after = rest.split(END)
    old = {line.split(" | ")[1]: line for line in table.splitlines()[2:]}
    lines = [line for tool in TOOLS if (line := rows.get(tool.name, old.get(tool.name)))]
    head = "| package | tool | on a converted model |\n|---|---|---|\n"
    PAGE.write_text(before + BEGIN + head + "\n".join(lines) + "\n" + END + after, "utf-8")


if __name__ == "__main__":
    main()
