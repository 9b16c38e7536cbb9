"""Batch normalization for PyTorch: layers that replace those of torch.nn, and tools for models. No code, only names."""

from xhat.torch import required as required  # first, and so above the line

# isort: split

from xhat.torch.accumulate import accumulate as accumulate
from xhat.torch.adapt import Adaptation as Adaptation
from xhat.torch.adapt import adapt as adapt
from xhat.torch.average import average as average
from xhat.torch.convert import Change as Change
from xhat.torch.convert import convert as convert
from xhat.torch.convert import revert as revert
from xhat.torch.convert.sync import convert_sync as convert_sync
from xhat.torch.doctor import CAUSES as CAUSES
from xhat.torch.doctor import Diagnosis as Diagnosis
from xhat.torch.doctor import Finding as Finding
from xhat.torch.doctor import diagnose as diagnose
from xhat.torch.doctor import examine as examine
from xhat.torch.doctor import watch as watch
from xhat.torch.domains import DomainBatchNorm as DomainBatchNorm
from xhat.torch.engines import engine_of as engine_of
from xhat.torch.engines import use_triton as use_triton
from xhat.torch.exponential_average import ExponentialAverage as ExponentialAverage
from xhat.torch.fold import Folded as Folded
from xhat.torch.fold import fold as fold
from xhat.torch.fold import fold_frozen as fold_frozen
from xhat.torch.fold import unfold as unfold
from xhat.torch.freeze import freeze as freeze
from xhat.torch.freeze import unfreeze as unfreeze
from xhat.torch.functional import batch_norm as batch_norm
from xhat.torch.ghost import GhostBatchNorm1d as GhostBatchNorm1d
from xhat.torch.ghost import GhostBatchNorm2d as GhostBatchNorm2d
from xhat.torch.ghost import GhostBatchNorm3d as GhostBatchNorm3d
from xhat.torch.nn import BatchNorm1d as BatchNorm1d
from xhat.torch.nn import BatchNorm2d as BatchNorm2d
from xhat.torch.nn import BatchNorm3d as BatchNorm3d
from xhat.torch.nn import LazyBatchNorm1d as LazyBatchNorm1d
from xhat.torch.nn import LazyBatchNorm2d as LazyBatchNorm2d
from xhat.torch.nn import LazyBatchNorm3d as LazyBatchNorm3d
from xhat.torch.recalibrate import Recalibrated as Recalibrated
from xhat.torch.recalibrate import recalibrate as recalibrate
from xhat.torch.renorm import BatchRenorm1d as BatchRenorm1d
from xhat.torch.renorm import BatchRenorm2d as BatchRenorm2d
from xhat.torch.renorm import BatchRenorm3d as BatchRenorm3d
from xhat.torch.sync.layer import SyncBatchNorm as SyncBatchNorm
from xhat.torch.sync.merge import merge_running_statistics as merge_running_statistics

__all__ = [
    "CAUSES",
    "Adaptation",
    "BatchNorm1d",
    "BatchNorm2d",
    "BatchNorm3d",
    "BatchRenorm1d",
    "BatchRenorm2d",
    "BatchRenorm3d",
    "Change",
    "Diagnosis",
    "DomainBatchNorm",
    "ExponentialAverage",
    "Finding",
    "Folded",
    "GhostBatchNorm1d",
    "GhostBatchNorm2d",
    "GhostBatchNorm3d",
    "LazyBatchNorm1d",
    "LazyBatchNorm2d",
    "LazyBatchNorm3d",
    "Recalibrated",
    "SyncBatchNorm",
    "accumulate",
    "adapt",
    "average",
    "batch_norm",
    "convert",
    "convert_sync",
    "diagnose",
    "engine_of",
    "examine",
    "fold",
    "fold_frozen",
    "freeze",
    "merge_running_statistics",
    "recalibrate",
    "revert",
    "unfold",
    "unfreeze",
    "use_triton",
    "watch",
]
