"""The paper's figures and numbers: python scripts/reproduce.py FIGURE [--quick] [--out DIR]."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run the code of this checkout

from kfcnet.cli import reproduce  # noqa: E402

if __name__ == "__main__":
    sys.exit(reproduce())
