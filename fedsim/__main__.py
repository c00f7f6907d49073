"""``python -m fedsim``."""

import sys

from fedsim.cli import console

if __name__ == "__main__":
    sys.exit(console())
