"""The lens: looks at batch normalization; the names below are loaded when they are asked for.

No code lives here but the table of names: importing the lens imports neither SymPy nor rich.
"""

from importlib import import_module
from typing import Any

# public name -> the module of this folder that defines it
_HOME = {
    "Adapter": "adapter",
    "check": "checker",
    "check_file": "loading",
    "derivation": "proof",
    "theorems": "closed_forms",
    "derive": "rendering",
    "evaluate": "graph",
    "graph": "graph",  # the module itself
    "path_summary": "paths",
    "report": "report_page",
    "report_model": "report_torch",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'xhat.lens' has no attribute {name!r}")
    home = import_module(f"{__name__}.{_HOME[name]}")
    value = home if _HOME[name] == name else getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
