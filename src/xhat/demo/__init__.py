"""The demo: a network for scanned digits, trained with the closed-form gradients of batch normalization.

``xhat demo`` calls `run`. It needs the extra `demo` (scikit-learn, matplotlib, rich); only the command line imports it.
"""

from xhat.demo.show import run

__all__ = ["run"]
