"""The demo: batch normalization's closed-form gradients train a network on real scanned digits.

`run` is what ``xhat demo`` calls. It needs the extra `demo` (scikit-learn, matplotlib, rich), and is imported
by nothing but the command line.
"""

from xhat.demo.show import run

__all__ = ["run"]
