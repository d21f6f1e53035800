"""Train a grid of settings in stages: python scripts/sweep.py --config NAME --grid KEY=A,B ..."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run the code of this checkout

from kfcnet.cli import sweep  # noqa: E402

if __name__ == "__main__":
    sys.exit(sweep())
