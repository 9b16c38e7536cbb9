"""The arrows of ARCHITECTURE.md as tables: what each part of the package may import, of it and of others."""

__all__ = ["MAY_IMPORT", "MAY_LOAD", "RIM"]

# What each part may import of the package, beside itself. A part is a module, a package, or a package inside one.
# The rim (the public names, the command line, the demo) may import all.
ENGINE = {"ops", "equations", "layout", "errors"}
CORE = ENGINE | {"plan", "checks"}
TORCH_INPUTS = {"torch.errors", "torch.internals", "torch.inputs", "torch.memory"}
TORCH_WAYS = {
    f"torch.{way}" for way in ("cpu", "composed", "engines", "autograd", "operators", "running_stats")
}
SEEN = (
    "composed",
    "cpu",
    "freeze",
    "functional",
    "nn",
    "progress",
    "recalibrate",
    "recorder",
    "sync",
    "trees",
)
WALKED = ("convert", "ghost", "nn", "operators", "recalibrate", "running_stats", "sync", "trees")
JAX_PARTS = ("jax.moments", "jax.derivatives", "jax.inputs", "jax.functional")
TORCH_PUBLIC = (
    *(
        "accumulate",
        "adapt",
        "average",
        "convert",
        "doctor",
        "domains",
        "engines",
        "exponential_average",
        "fold",
    ),
    *("freeze", "functional", "ghost", "nn", "recalibrate", "renorm", "sync"),
)
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "notebook": set(),
    "templates": {"errors"},
    "layout": {"errors"},
    "equations": {"layout", "errors"},
    "checks": {"layout", "errors"},
    "installation": {"_kernels"},
    "plan": {"checks", "layout", "errors", "installation"},
    "operands": {"plan", "checks", "layout", "errors"},
    "results": {"operands", "plan", "checks", "equations", "layout", "errors"},
    "ops": {"results", "operands", "plan", "checks", "equations", "layout", "errors"},
    "numpy": {"numpy_checks", "ops", "equations", "layout", "errors"},
    "numpy_checks": {"checks", "errors"},
    # JAX, from the bottom up, and the layers on it.
    "jax.moments": {"checks", "equations"},
    "jax.derivatives": {"equations", "jax.moments"},
    "jax.inputs": {"operands", "checks", "errors", "jax.moments"},
    "jax.functional": CORE | {"jax.derivatives", "jax.inputs", "jax.moments"},
    "jax": {"jax.functional", "jax.moments"},
    "flax.layer": {"plan", *JAX_PARTS},
    "flax.nnx": {"flax.layer", "jax.moments"},
    "flax.linen": {"layout", "flax.layer", "jax.moments"},
    "flax": {"flax.linen", "flax.nnx"},
    "equinox": {"plan", "equations", *JAX_PARTS},
    "stored": {"numpy_checks", "checks", "errors"},
    "states": {"stored", "checks", "errors"},
    "keras": {"equations", "errors"},
    # PyTorch, from the bottom up: each file, then the packages for whole models, which nothing below imports.
    "torch.errors": {"errors"},
    "torch.internals": set(),
    "torch.memory": {"checks", "torch.errors", "torch.internals"},
    "torch.inputs": CORE | {"torch.errors", "torch.memory", "torch.internals"},
    "torch.centering": {"torch.internals"},
    "torch.composed": CORE | {"torch.centering", "torch.inputs"},
    "torch.cpu": CORE | TORCH_INPUTS | {"torch.memory"},
    "torch.gpu": CORE | TORCH_INPUTS | {"torch.cpu"},
    "torch.engines": {"errors", "torch.cpu", "torch.errors", "torch.inputs", "torch.internals"},
    "torch.running_stats": CORE | TORCH_INPUTS,
    "torch.autograd": CORE | TORCH_INPUTS | {"torch.cpu", "torch.composed"},
    "torch.operators": CORE
    | TORCH_INPUTS
    | {"torch.cpu", "torch.composed", "torch.engines", "torch.exported"},
    "torch.functional": CORE | TORCH_INPUTS | TORCH_WAYS,
    "torch.exported": CORE | TORCH_INPUTS | {"torch.composed", "torch.running_stats"},
    "torch.tools": CORE | TORCH_INPUTS,
    "torch.nn": CORE
    | TORCH_INPUTS
    | {"torch.engines", "torch.functional", "torch.running_stats", "torch.exported", "torch.tools"},
    "torch.renorm": CORE
    | TORCH_INPUTS
    | {"torch.engines", "torch.functional", "torch.nn", "torch.running_stats"},
    "torch.domains": {"errors", "torch.errors"},
    "torch.trees": set(),
    "torch.accumulate": CORE | TORCH_INPUTS | {f"torch.{part}" for part in WALKED},
    "torch.adapt": CORE | TORCH_INPUTS | TORCH_WAYS | {"torch.freeze", "torch.nn"},
    "torch.ghost": CORE | TORCH_INPUTS | {"torch.nn", "torch.running_stats"},
    "torch.freeze": CORE | {"torch.nn"},
    "torch.sync": CORE | TORCH_INPUTS | TORCH_WAYS | {"torch.functional", "torch.nn"},
    "torch.convert": CORE | TORCH_INPUTS | {"torch.nn", "torch.sync"},
    "torch.recorder": CORE | TORCH_INPUTS | TORCH_WAYS | {"torch.functional", "torch.nn", "torch.sync"},
    "torch.progress": set(),
    "torch.recalibrate": CORE | TORCH_INPUTS | {"torch.progress", "torch.recorder", "torch.nn", "torch.sync"},
    "torch.checkpoints": {"errors", "torch.errors"},
    "torch.average": CORE | {"torch.checkpoints", "torch.sync"},
    "torch.exponential_average": CORE | {"torch.checkpoints", "torch.recalibrate"},
    "torch.doctor": {"notebook", "templates"} | CORE | TORCH_INPUTS | {f"torch.{part}" for part in SEEN},
    "torch.fold": CORE | TORCH_INPUTS | {"torch.composed", "torch.convert", "torch.nn"},
    "torch.required": set(),
    "torch": {"torch.required", *(f"torch.{part}" for part in TORCH_PUBLIC)},
    "lens": set(),
    "lens.paths": ENGINE,
    "lens.prover": {"equations", "errors"},
    "lens.checker": {"equations", "errors", "notebook", "templates"},
    "lens.reporter": {"lens.paths", "equations", "layout", "errors", "notebook"},
}
RIM = {"__init__", "__main__", "cli", "demo"}

# What each part may import of others, inside a function included; the standard library goes without saying.
MAY_LOAD: dict[str, set[str]] = {
    "errors": set(),
    "notebook": set(),
    "templates": {"jinja2"},
    "layout": set(),
    "equations": set(),
    "checks": {"numpy"},
    "operands": {"numpy"},
    "installation": {"numpy"},
    "plan": set(),
    "results": {"numpy"},
    "ops": {"numpy"},
    "numpy": {"numpy"},
    "numpy_checks": {"numpy"},
    "jax": {"numpy", "jax"},
    "flax": {"flax", "jax"},
    "equinox": {"equinox", "jax"},
    "stored": {"numpy"},
    "states": {"numpy"},
    "keras": {"keras"},
    "torch": {"numpy", "rich", "safetensors", "torch", "triton"},
    "lens": set(),
    "lens.paths": {"numpy"},
    "lens.prover": {"numpy", "sympy", "mpmath", "rich"},
    "lens.checker": {"numpy", "rich"},  # PyTorch and JAX by name, where the code under test uses them
    "lens.reporter": {"numpy", "torch"},
    "demo": {"numpy", "sklearn", "matplotlib", "rich", "threadpoolctl", "torch"},
    "cli": set(),
}
