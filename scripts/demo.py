"""KFC-pre beside SGD on the embedded digits: python scripts/demo.py [--out DIR]."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run the code of this checkout

from kfcnet.cli import demo  # noqa: E402

if __name__ == "__main__":
    sys.exit(demo())
