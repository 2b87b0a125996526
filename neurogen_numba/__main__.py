"""`python -m neurogen_numba` is `neurogen`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
