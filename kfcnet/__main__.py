"""`python -m kfcnet COMMAND ...`: the command line without its console script."""

import sys

from kfcnet.cli import main

if __name__ == "__main__":
    sys.exit(main())
