"""Batch normalization for Flax: the layers of nnx and of linen, replaced. Two modules with one public name each.

`xhat.flax.nnx.BatchNorm` and `xhat.flax.linen.BatchNorm`.
"""

from xhat.flax import linen as linen
from xhat.flax import nnx as nnx

__all__ = ["linen", "nnx"]
