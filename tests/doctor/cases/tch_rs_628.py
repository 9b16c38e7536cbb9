"""A checkpoint of the variables only: without the buffers of the batch norms."""

from fitting import Case
from networks import residual

SOURCE = "LaurentMazare/tch-rs#628"


def case(seed: int = 0) -> Case:
    """The parameters of a small ResNet."""
    model = residual(4)
    return Case(
        "missing-statistics", model, how="checkpoint", severity="risk", state=dict(model.named_parameters())
    )
