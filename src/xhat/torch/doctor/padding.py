"""Padding in a batch: positions at the end of the time axis that are alike in all channels. Nothing is judged here."""

import torch
from torch import Tensor

__all__ = ["Padding"]

SHORTEST = 8  # time steps: in a shorter sequence, equal values at the end are no evidence
LEAST = 2  # steps that are equal to the one before, at the end, that count as padding
EDGE = 4  # steps at the end that a convolution with zeros behind them changes


class Padding:
    """The lengths of the samples of one forward pass, as the first layer has shown them.

    Behind the first convolution, the last steps differ, because it pads with zeros what is no longer zero. So the
    lengths that were found once, as parts of the axis, hold for the layers that follow.
    """

    def __init__(self) -> None:
        self.parts: Tensor | None = None

    def forget(self) -> None:
        """A new forward pass."""
        self.parts = None

    def weights(self, x: Tensor) -> Tensor | None:
        """Weights (N, 1, L, ...) of x (N, C, L, ...) that are 0 in the padding; None if there is none."""
        if not 3 <= x.dim() <= 4 or x.shape[2] < SHORTEST:
            return None
        steps = x.shape[2]
        if self.parts is None or len(self.parts) != len(x):
            lengths = self._lengths(x)
            if lengths is None:
                return None
            self.parts = lengths / steps
        lengths = torch.ceil(self.parts * steps).to(x.device)
        inside = torch.arange(steps, device=x.device) < lengths[:, None]
        return inside.reshape(len(x), 1, steps, *[1] * (x.dim() - 3))

    @staticmethod
    def _lengths(x: Tensor) -> Tensor | None:
        """Steps of each sample before the equal ones at its end; None unless samples differ in it."""
        columns = x.detach().movedim(2, 1).flatten(2)  # (N, L, C ...)
        as_before = (columns[:, 1:] == columns[:, :-1]).all(2)
        for edge in range(EDGE):  # a convolution pads the end with zeros, so that its last steps differ
            run = as_before[:, : as_before.shape[1] - edge].flip(1).cumprod(1).sum(1)
            if (run >= LEAST).any():
                break
        padded = (run >= LEAST) & (run < as_before.shape[1] - edge)  # a constant sample is not padding
        run = torch.where(padded, run + 1 + edge, 0)
        lengths = torch.where(padded, x.shape[2] - run, x.shape[2]).cpu()
        return lengths if padded.any() and len(lengths.unique()) > 1 else None
