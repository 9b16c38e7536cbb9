"""What several tests of fold use."""

import sys

import pytest

import xhat.torch  # noqa: F401  # loads the module that is patched


@pytest.fixture(params=["torch.fx", "torch.export"])
def recorder(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either tool records the graph."""
    if request.param == "torch.export":
        monkeypatch.setattr(sys.modules["xhat.torch.fold.graph"], "_by_fx", lambda *_: 1 / 0)
