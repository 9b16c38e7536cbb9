"""`python -m xhat`: the command line, where the script `xhat` is not on the path."""

import sys

from xhat.cli import main

sys.exit(main())
