"""The public names of the lens: documented, and not hidden by a submodule of the same name."""

from conftest import in_a_process

import xhat.lens

EVERY_MODULE = """
import importlib, pkgutil, types, xhat.lens
for module in pkgutil.walk_packages(xhat.lens.__path__, "xhat.lens."):
    importlib.import_module(module.name)
print([name for name in xhat.lens.__all__ if isinstance(getattr(xhat.lens, name), types.ModuleType)])
"""


def test_no_submodule_hides_a_public_name() -> None:
    """Importing a submodule binds its name in the package; only `graph` is meant to be a module."""
    assert in_a_process(EVERY_MODULE).strip() == "['graph']"


def test_every_public_name_has_a_docstring() -> None:
    assert {name for name in xhat.lens.__all__ if not getattr(xhat.lens, name).__doc__} == set()
