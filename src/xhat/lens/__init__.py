"""Tools that look at batch normalization from outside; each name below is loaded on first access.

    paths       where a gradient comes from: `graph`, `evaluate`, `path_summary`
    prover      the derivation, proved or refuted: `derivation`, `theorems`, `derive`
    checker     which mistake an implementation makes: `check`, `check_file`, `check_files`, `Adapter`
    reporter    an HTML page about a layer or a model: `report`, `report_model`

The packages have other names than the functions, since importing a submodule binds its name here and would hide the
function. Only this table of names lives here: importing the lens imports neither SymPy nor rich.
"""

from importlib import import_module
from typing import Any

# public name -> the module that defines it
_HOME = {
    "Adapter": "checker.calling.adapter",
    "check": "checker.check",
    "check_data": "checker.kernels.data",
    "check_file": "checker.load",
    "check_files": "checker.load",
    "derivation": "prover.records",
    "theorems": "prover.theorems",
    "derive": "prover.command",
    "evaluate": "paths.graph",
    "graph": "paths.graph",  # the module itself
    "path_summary": "paths.summary",
    "probes": "checker.diagnosis.crossing",
    "report": "reporter.page",
    "report_model": "reporter.model",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'xhat.lens' has no attribute {name!r}")
    home = import_module(f"{__name__}.{_HOME[name]}")
    value = home if name == "graph" else getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
