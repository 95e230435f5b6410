"""`python -m rlplatform` is the command `rlplatform`."""

import sys

from rlplatform.cli import main

if __name__ == "__main__":
    sys.exit(main())
