"""Compiles a Triton kernel for a GPU that need not be here, and counts what its machine code does."""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from xhat.torch.gpu.launch import OPTIONS

CUDA_TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
OF_X = ("x", "dy", "y", "residual", "saved", "dx", "dresidual")
FLOAT64 = ("parts", "given", "mean", "var", "w", "dgamma", "dbeta", "count")
NUMBERS = ("m", "correction", "running_correction", "eps", "weight", "factor")


def nvidia(capability: int) -> GPUTarget:
    """The target sm_80, sm_90, ..."""
    return GPUTarget("cuda", capability, 32)


AMD = GPUTarget("hip", "gfx942", 64)


class Counts(NamedTuple):
    """Registers of a thread; instructions that spill them; loads and stores of global memory by their width in bits."""

    registers: int
    spills: int
    loads: dict[int, int]
    stores: dict[int, int]


def compiled(kernel: Any, dtype: str, constants: dict[str, Any], target: GPUTarget) -> Any:
    """The kernel for x of a dtype ("fp32", "bf16", "fp64"), with addresses that are multiples of 16."""

    def kind(name: str) -> str:
        if name in constants:
            return "constexpr"
        if name in OF_X:
            return f"*{dtype}"
        if name in FLOAT64 or (name in ("terms", "factors") and dtype == "fp64"):
            return "*fp64"
        if name in NUMBERS:
            return "fp64"
        vectors = ("terms", "factors", "gamma", "beta", "running_mean", "running_var")
        return "*fp32" if name in vectors else "*i64" if name == "batches" else "i32"

    assert {p.name for p in kernel.params if p.is_constexpr} == set(constants)  # or a branch would be another
    signature = {name: kind(name) for name in kernel.arg_names}
    aligned = {
        (i,): [["tt.divisibility", 16]]
        for i, name in enumerate(kernel.arg_names)
        if signature[name].startswith("*")
    }
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned)
    return triton.compile(source, target=target, options=OPTIONS)


def counts(made: Any) -> Counts:
    """What the machine code of an NVIDIA GPU does, by the disassembler that comes with Triton."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as binary:
        binary.write(made.asm["cubin"])
        binary.flush()
        used, code = (
            subprocess.run(
                [str(CUDA_TOOLS / tool), option, binary.name], capture_output=True, text=True, check=True
            ).stdout
            for tool, option in (("cuobjdump", "-res-usage"), ("nvdisasm", "-c"))
        )
    registers = re.search(r"REG:(\d+)", used)
    assert registers
    operations = re.findall(r"\*/\s+(?:@!?U?P\w+\s+)?([A-Z][A-Z0-9_.]*)", code)

    def widths(prefix: str) -> dict[int, int]:
        found: dict[int, int] = {}
        for operation in operations:
            if operation.startswith(prefix):
                width = re.search(r"\.U?(16|64|128)\b", operation)
                bits = int(width[1]) if width else 32
                found[bits] = found.get(bits, 0) + 1
        return found

    spills = sum(operation.startswith(("LDL", "STL")) for operation in operations)
    return Counts(int(registers[1]), spills, widths("LDG"), widths("STG"))


def spilled_on_amd(made: Any) -> int:
    """Vector registers that an AMD GPU has to spill."""
    found = re.search(r"\.vgpr_spill_count:\s+(\d+)", made.asm["amdgcn"])
    assert found
    return int(found[1])
