"""``python -m selfserve``."""

import sys

from selfserve.cli import main

if __name__ == "__main__":
    sys.exit(main())
