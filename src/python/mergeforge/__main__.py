"""`python -m mergeforge`: the command line."""

import sys

from ._commands import mergeforge

if __name__ == "__main__":
    sys.exit(mergeforge())
