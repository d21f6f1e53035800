"""Draw runs side by side: python scripts/plot.py RUN... [--x updates] [--out FILE]."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run the code of this checkout

from kfcnet.cli import plot  # noqa: E402

if __name__ == "__main__":
    sys.exit(plot())
