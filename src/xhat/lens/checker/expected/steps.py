"""The steps of a forward and a backward pass as data: their faults, their results, and how a backward is written.

Nothing is computed here; `reference` does.
"""

from dataclasses import dataclass
from typing import NamedTuple

from xhat.lens.checker.expected.probes import Array

__all__ = ["CLOSED", "DERIVATIVE", "EXACT", "FORMULATIONS", "Backward", "Faults", "Formulation", "Forward"]


@dataclass(frozen=True)
class Faults:
    """The faults of one computation. The defaults are the exact computation.

    A sum is over "all" elements of a channel, over the "batch" axis only, or over the axes that remain if another
    axis is "mistaken" for the channel axis. A count is a divisor: "m" (correct), "1" (a sum), "m - 1", or "batch"
    (the length of the batch axis), or "every" (the elements of a channel, whatever the sum is over). A "reshaped"
    grouping takes every C-th value of a flattened batch for a channel. The paths of dx are direct, the mean path with
    sum(dxhat 1), and the variance path along xhat with sum(dxhat xhat); gamma stands at "the start", in dxhat, or at
    "the end". ``*_power`` and ``*_count`` in the backward are
    extra factors rstd^k and m^k.
    """

    # forward: mu, var
    mean_over: str = "all"
    mean_count: str = "m"
    variance_over: str = "all"
    variance_count: str = "m"
    variance_about: str = "mu"
    variance_form: str = "two passes"
    mean_from: str = "batch"
    variance_from: str = "batch"
    # forward: rstd, y
    eps: str = "inside"
    root: float = 0.5
    gamma: bool = True
    beta: bool = True
    beta_times: str = "1"
    grouping: str = "channels"
    # backward: its rstd and xhat
    backward_eps: str | float = "inside"
    backward_root: float = 0.5
    backward_where: str = "everywhere"
    backward_variance: str = "same"
    backward_grouping: str = "channels"
    # backward: the three paths
    direct_sign: float = 1.0
    mean_sign: float = 1.0
    variance_sign: float = 1.0
    variance_factor: float = 1.0
    direct_kept: float = 1.0
    mean_kept: float = 1.0
    variance_kept: float = 1.0
    direct_source: str = "dxhat"
    mean_source: str = "dxhat"
    variance_source: str = "dxhat"
    direct_count: int = 0
    mean_count_power: int = 0
    variance_count_power: int = 0
    direct_power: int = 0
    mean_power: int = 0
    variance_power: int = 0
    mean_divisor: str = "m"
    variance_divisor: str = "m"
    mean_sum_over: str = "all"
    variance_sum_over: str = "all"
    mean_sum_with: str = "1"
    variance_sum_with: str = "xhat"
    variance_along: str = "xhat"
    gamma_at: str = "the start"
    dx_grouping: str = "channels"
    all_count: int = 0
    all_power: int = 0
    # backward: the parameters
    dgamma_with: str = "xhat"
    dgamma_over: str = "all"
    dgamma_count: str = "sum"
    dgamma_of: str = "dy"
    dbeta_with: str = "1"
    dbeta_over: str = "all"
    dbeta_count: str = "sum"
    dbeta_of: str = "dy"


EXACT = Faults()


class Forward(NamedTuple):
    """A forward pass and its local derivatives: dmu/dx, dvar/dx / (2 (x - mu)) and drstd/dvar."""

    mu: Array
    var: Array
    rstd: Array
    xhat: Array
    y: Array
    mean_slope: float
    variance_slope: float
    rstd_slope: Array


class Backward(NamedTuple):
    """A backward pass: the three paths and their sum dx, and the gradients of the parameters."""

    direct: Array
    mean: Array
    variance: Array
    dx: Array
    dgamma: Array
    dbeta: Array


class Formulation(NamedTuple):
    """How a backward is written. All formulations are equal if the forward has no fault.

    style: the exact "derivative" of its forward; or, from the values that the forward saved, the "closed" form,
    three "terms" (rstd outside the sums), or node by node ("nodes": the path from var through mu is summed too; in
    "nodes, followed", faults of the variance path apply to it as well). own: where the backward computes rstd itself.
    """

    style: str
    own: str = ""


DERIVATIVE, CLOSED = Formulation("derivative"), Formulation("closed")
FORMULATIONS = (
    DERIVATIVE,
    *(
        Formulation(s, own)
        for s in ("closed", "terms", "nodes", "nodes, followed")
        for own in ("", "dvar step", "dvar", "everywhere")
    ),
)
