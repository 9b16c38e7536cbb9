"""The doctor: says why batch norm hurts a model, proves it, and repairs it. The public names; no code."""

from xhat.torch.doctor.checkpoint import examine as examine
from xhat.torch.doctor.diagnose import diagnose as diagnose
from xhat.torch.doctor.diagnosis import Diagnosis as Diagnosis
from xhat.torch.doctor.findings import CAUSES as CAUSES
from xhat.torch.doctor.findings import Finding as Finding
from xhat.torch.doctor.findings import Proof as Proof
from xhat.torch.doctor.watch import watch as watch

__all__ = ["CAUSES", "Diagnosis", "Finding", "Proof", "diagnose", "examine", "watch"]
