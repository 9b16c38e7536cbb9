"""Which kernels compute a tensor, and what chooses them."""

import subprocess
import sys

import pytest
import torch

import xhat.torch as xt
from xhat.errors import ArgumentError
from xhat.torch import engines


def test_a_tensor_of_the_cpu_is_computed_by_the_compiled_kernels() -> None:
    assert xt.engine_of(torch.zeros(2, 3)) == "kernels"


def test_what_the_kernels_do_not_take_is_composed() -> None:
    assert xt.engine_of(torch.zeros(2, 3, device="meta")) == "composed"
    assert xt.engine_of(torch.zeros(2, 3, dtype=torch.int32)) == "composed"


def test_what_is_no_tensor_is_refused() -> None:
    with pytest.raises(TypeError, match="engine_of: got list, expected a tensor"):
        xt.engine_of([1.0])  # type: ignore[arg-type]


def test_switching_triton_on_without_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "_installed", lambda: False)
    monkeypatch.setattr(engines, "switched_on", False)
    with pytest.raises(ArgumentError, match="the package triton is not installed"):
        xt.use_triton()
    assert engines.switched_on is False


def test_importing_xhat_loads_no_triton() -> None:
    program = "import sys, xhat.torch; sys.exit('triton' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize("name", ["weight", "bias", "residual", "mask"])
def test_tensors_on_two_devices_are_named(name: str) -> None:
    x = torch.randn(4, 3)
    shape = {"residual": (4, 3), "mask": (4, 1)}.get(name, (3,))
    with pytest.raises(
        RuntimeError, match=f"batch_norm: {name} is on meta and input on cpu, expected one device"
    ):
        xt.batch_norm(x, None, None, training=True, **{name: torch.ones(shape, device="meta")})  # type: ignore[arg-type]


def test_a_tensor_beyond_32_bits_is_not_given_to_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("switched_on", True), ("_interpreted", True), ("_installed", lambda: True)):
        monkeypatch.setattr(engines, name, value)
    assert xt.engine_of(torch.zeros(1).expand(2**31)) == "kernels"
