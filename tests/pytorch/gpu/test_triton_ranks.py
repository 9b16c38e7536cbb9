"""A batch on many ranks whose moments are exchanged on the device, without a copy to the host."""

import sys

import numpy as np
import pytest
import torch
from launching import RANKS, failures, world
from requirements_of_triton import requires_triton

sys.path.insert(0, str(RANKS))
import on_device  # the claims that the ranks check

from xhat.plan import Options
from xhat.torch.sync.shared_batch import _merged_on_device


@requires_triton
@pytest.mark.parametrize("claim", on_device.claim.names)
def test_ranks_exchange_tensors_of_their_device(claim: str) -> None:
    assert not failures(world("on_device.py", 2, TRITON_INTERPRET="1", XHAT_TRITON="1"), claim)


def test_the_rows_of_ranks_are_the_moments_of_all_values() -> None:
    x = np.random.default_rng(0).normal(1e6, 1, (7, 3))
    rows = [np.concatenate(([len(p)], p.mean(0), ((p - p.mean(0)) ** 2).sum(0))) for p in (x[:2], x[2:])]
    rows.append(np.zeros(7))  # of a rank without values
    (mean, var), m = _merged_on_device(torch.tensor(np.array(rows)), Options(1e-5, 1, None, 0.0))
    np.testing.assert_allclose(mean, x.mean(0), rtol=1e-15)
    np.testing.assert_allclose(var, x.var(0, ddof=1), rtol=1e-9)
    assert m == 7


@pytest.mark.parametrize(("values", "correction"), [(1.0, 0), (0.5, 1)])
def test_rows_without_a_variance_are_refused(values: float, correction: int) -> None:
    rows = torch.tensor([[values, 5.0, 0.0], [0.0, 0.0, 0.0]], dtype=torch.float64)
    with pytest.raises(RuntimeError, match="the batch of all ranks has no variance"):
        _merged_on_device(rows, Options(1e-5, correction, None, 0.0))
