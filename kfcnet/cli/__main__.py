"""`python -m kfcnet.cli COMMAND ...`: the same as `python -m kfcnet`."""

import sys

from kfcnet.cli import main

sys.exit(main())
