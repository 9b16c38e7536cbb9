"""The machine code of the kernels: no register is spilled, and x is read and written 16 bytes at a time."""

from typing import Any

import pytest
from requirements_of_triton import requires_triton

pytestmark = requires_triton

VECTORS = {"fp32": 4, "bf16": 8}
KERNELS = ("moments", "gradient_sums", "normalize", "input_gradient", "forward", "backward")


def constants_of(name: str, dtype: str, lanes: bool) -> tuple[Any, dict[str, Any]]:
    """A kernel of this name, and its constants for a large layer with relu."""
    import triton.language as tl

    from xhat.torch.gpu import maps, merge, sums, tiles, whole
    from xhat.torch.gpu.formulas import BY_MOMENTUM, CUMULATIVE

    vec, whole_channel = VECTORS[dtype], name in ("forward", "backward")
    outer, inner = (16, 256) if whole_channel else (64, 784)
    shape, strides = (
        ((outer, 64, inner), (64 * inner, inner, 1)) if lanes else ((outer * inner, 64, 1), (64, 1, 1))
    )
    if whole_channel and not lanes:
        shape = (64, 64, 1)
    t = tiles.tiles_of(shape, 16 // vec, (strides,), 1)
    assert t.vec == vec and t.whole == whole_channel
    affine, relu = dict(GAMMA=True, BETA=True), dict(ACTIVATION=1, SLOPE=0.0)
    terms = dict(TERMS=1 if dtype == "fp32" else 8)
    tile = dict(VEC=vec, ROWS=t.rows, COLUMNS=t.columns, WIDE=tl.float32, LANES=lanes)
    mapped = tile | dict(ROWS=t.map_rows)
    unweighted, moved = dict(WEIGHTED=False), dict(MOVED=BY_MOMENTUM.value)
    return {
        "moments": (sums.moments, tile | terms | unweighted),
        "gradient_sums": (sums.gradient_sums, tile | terms | relu | affine | unweighted | dict(SOURCE=0)),
        "normalize": (maps.normalize, mapped | relu | dict(RESIDUAL=False)),
        "input_gradient": (maps.input_gradient, mapped | relu | unweighted | dict(SOURCE=0, DRESIDUAL=False)),
        "forward": (whole.forward, tile | relu | affine | moved | dict(RESIDUAL=False)),
        "backward": (whole.backward, tile | relu | affine | dict(SOURCE=0, DRESIDUAL=False)),
        "merge_moments": (merge.merge_moments, affine | moved | dict(STEP=8, COLUMNS=32, GIVEN=False)),
        "track": (merge.track, dict(MOVED=CUMULATIVE.value, COLUMNS=32, COUNTED=True)),
    }[name]


@pytest.mark.parametrize("lanes", [True, False], ids=["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", VECTORS)
@pytest.mark.parametrize("name", KERNELS)
def test_a_hopper_reads_16_bytes_at_a_time_and_spills_nothing(name: str, dtype: str, lanes: bool) -> None:
    from machine_code import compiled, counts, nvidia

    found = counts(compiled(*_arguments(name, dtype, lanes), nvidia(90)))
    assert found.spills == 0
    assert found.registers <= (232 if name in ("forward", "backward") else 168)
    assert found.loads.get(128, 0) >= (2 if name in ("gradient_sums", "input_gradient", "backward") else 1)
    assert 16 not in found.loads and 16 not in found.stores  # no element of bfloat16 travels alone
    if name not in ("moments", "gradient_sums"):
        assert found.stores.get(128, 0) >= 1


@pytest.mark.parametrize("name", ["merge_moments", "track"])
def test_what_is_done_once_a_channel_spills_nothing(name: str) -> None:
    from machine_code import compiled, counts, nvidia

    found = counts(compiled(*_arguments(name, "fp32", True), nvidia(90)))
    assert found.spills == 0 and found.stores  # the running statistics among them


@pytest.mark.parametrize("name", ["gradient_sums", "input_gradient", "backward"])
@pytest.mark.parametrize("capability", [80, 100])
def test_other_nvidia_gpus_spill_nothing(name: str, capability: int) -> None:
    from machine_code import compiled, counts, nvidia

    assert counts(compiled(*_arguments(name, "bf16", True), nvidia(capability))).spills == 0


@pytest.mark.parametrize("name", ["gradient_sums", "input_gradient", "backward"])
def test_an_amd_gpu_spills_nothing(name: str) -> None:
    from machine_code import AMD, compiled, spilled_on_amd

    assert spilled_on_amd(compiled(*_arguments(name, "bf16", True), AMD)) == 0


def _arguments(name: str, dtype: str, lanes: bool) -> tuple[Any, str, dict[str, Any]]:
    kernel, constants = constants_of(name, dtype, lanes)
    return kernel, dtype, constants
