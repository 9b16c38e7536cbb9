"""The page about a PyTorch model: every layer in order, with the gradients of autograd; the model is unchanged."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lens.reporter.page_data import HOSTILE, data_of, unpacked

from xhat.errors import ArgumentError
from xhat.lens import report_model

torch = pytest.importorskip("torch")
nn = torch.nn


def model(inplace: bool = True) -> Any:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(inplace=inplace),
        nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=inplace),
        nn.Flatten(), nn.Linear(8 * 16, 5), nn.BatchNorm1d(5),
    )  # fmt: skip


def batch() -> tuple[Any, Any]:
    torch.manual_seed(1)
    return torch.randn(12, 3, 8, 8), torch.arange(12) % 5


def layers_of(path: Path) -> list[dict[str, Any]]:
    layers: list[dict[str, Any]] = data_of(path.read_text(encoding="utf-8"))["layers"]
    return layers


def test_every_layer_in_order_with_autograds_gradients(tmp_path: Path) -> None:
    """Also if a ReLU modifies the output of the layer in place, as in most networks."""
    net = model(inplace=True)
    layers = layers_of(report_model(net, batch(), nn.functional.cross_entropy, path=tmp_path / "r.html"))
    assert [layer["name"] for layer in layers] == ["1", "4", "8"]
    assert [layer["count"] for layer in layers] == [6, 8, 5]
    again = model(inplace=False)
    seen: list[Any] = []

    def note(module: Any, given: tuple[Any, ...], y: Any) -> None:
        given[0].retain_grad()
        y.retain_grad()
        seen.append((given[0], y))

    for place in (1, 4, 8):
        again[place].register_forward_hook(note)
    x, target = batch()
    nn.functional.cross_entropy(again(x), target).backward()
    for layer, (x, y), module in zip(layers, seen, (again[1], again[4], again[8]), strict=True):
        others = [a for a in range(x.ndim) if a != 1]
        columns = {name: unpacked(packed) for name, packed in layer["columns"].items()}
        expected = {
            "mu": x.mean(others), "var": x.var(others, correction=0),
            "dx": x.grad.pow(2).sum(others).sqrt(), "dy": y.grad.pow(2).sum(others).sqrt(),
            "dgamma": module.weight.grad, "dbeta": module.bias.grad,
        }  # fmt: skip
        for name, value in expected.items():
            np.testing.assert_allclose(
                columns[name], value.detach().numpy(), rtol=2e-4, atol=1e-6, err_msg=name
            )
        kept, by_mean, by_variance = layer["shares"]
        assert kept + by_mean + by_variance == pytest.approx(1)


def test_the_model_is_unchanged(tmp_path: Path) -> None:
    net = model()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    report_model(net, batch(), nn.functional.cross_entropy, path=tmp_path / "r.html")
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert not any(module._forward_hooks for module in net.modules())
    with pytest.raises(
        ArgumentError, match=r"model raised RuntimeError \(.*\) on a Tensor of shape \(2, 7\)"
    ):
        report_model(net, torch.randn(2, 7), torch.sum, path=tmp_path / "r.html")
    assert not any(module._forward_hooks for module in net.modules())


def test_layers_in_evaluation_use_their_running_moments(tmp_path: Path) -> None:
    net = model()
    net[4].eval().running_mean += 1
    layers = layers_of(report_model(net, batch(), nn.functional.cross_entropy, path=tmp_path / "r.html"))
    assert [layer["fixed"] for layer in layers] == [False, True, False]
    assert layers[1]["shares"] == [1, 0, 0]
    np.testing.assert_array_equal(unpacked(layers[1]["columns"]["mu"]), 1)


def test_a_frozen_model_and_a_loss_of_the_output_alone(tmp_path: Path) -> None:
    net = model().requires_grad_(False)
    layers = layers_of(report_model(net, batch()[0], lambda y: y.square().sum(), path=tmp_path / "r.html"))
    assert all("dx" in layer["columns"] for layer in layers)


def test_a_layer_with_an_activation_or_a_residual_is_shown_forward_only(tmp_path: Path) -> None:
    class Fused(nn.BatchNorm1d):  # type: ignore[name-defined, misc]
        act = nn.ReLU()

        def forward(self, x: Any) -> Any:
            return self.act(super().forward(x))

    class Named(nn.BatchNorm1d):  # type: ignore[name-defined, misc]
        def forward(self, *, x: Any, residual: Any = None) -> Any:
            return super().forward(x) if residual is None else super().forward(x) + residual

    class Net(nn.Sequential):  # type: ignore[name-defined, misc]
        def forward(self, x: Any) -> Any:
            return self[3](x=self[2](x=self[1](self[0](x))), residual=x)

    net = Net(Fused(4), nn.BatchNorm1d(4), Named(4), Named(4))
    fused, plain, named, added = layers_of(
        report_model(net, torch.randn(9, 4), torch.sum, path=tmp_path / "r.html")
    )
    assert fused["shares"] is None and "dx" not in fused["columns"]
    assert "dx" in plain["columns"] and "dx" in named["columns"]
    assert "dx" not in added["columns"]


def test_a_layer_used_twice_is_shown_twice(tmp_path: Path) -> None:
    norm = nn.BatchNorm1d(4).eval()
    net = nn.Sequential(nn.Linear(4, 4), norm, nn.Linear(4, 4), norm)
    layers = layers_of(report_model(net, torch.randn(9, 4), torch.sum, path=tmp_path / "r.html"))
    assert [layer["name"] for layer in layers] == ["1", "1 (call 2)"]


def test_bfloat16_and_hostile_names(tmp_path: Path) -> None:
    name = HOSTILE.replace(".", "")
    net = nn.Sequential()
    net.add_module(name, nn.BatchNorm1d(4))
    net = net.to(torch.bfloat16)
    path = report_model(net, torch.randn(9, 4, dtype=torch.bfloat16), torch.sum, path=tmp_path / "r.html")
    assert layers_of(path)[0]["name"] == name
    assert "<img" not in path.read_text(encoding="utf-8")


def test_wrong_input_gets_a_sentence(tmp_path: Path) -> None:
    def refused(net: Any, loss: Any, sentence: str) -> None:
        with pytest.raises(ArgumentError, match=f"^{re.escape(sentence)}$"):
            report_model(net, torch.randn(9, 4), loss, path=tmp_path / "r.html")

    refused(nn.Linear(4, 2), torch.sum, "report_model: Linear has no batch-norm layer, expected one or more.")
    tail = ", expected one number, computed from the model's output by PyTorch."
    refused(nn.BatchNorm1d(4), lambda y: y, f"report_model: the loss returned a tensor of shape (9, 4){tail}")
    refused(nn.BatchNorm1d(4), lambda y: y.sum().item(), f"report_model: the loss returned float{tail}")
    assert not list(tmp_path.iterdir())


def test_the_page_links_to_the_doctors_relative_to_itself(tmp_path: Path) -> None:
    def address(path: Path, doctor: Any) -> Any:
        page = report_model(model(), batch(), nn.functional.cross_entropy, path=path, doctor=doctor)
        return data_of(page.read_text(encoding="utf-8"))["doctor"]

    (tmp_path / "pages").mkdir()
    assert address(tmp_path / "r.html", None) is None
    assert address(tmp_path / "r.html", tmp_path / "d.html") == "./d.html"
    assert address(tmp_path / "pages" / "r.html", str(tmp_path / "d 100%.html")) == "./../d%20100%25.html"
    assert address(tmp_path / "r.html", tmp_path / "javascript:alert(1)") == "./javascript%3Aalert%281%29"
