"""Time training steps of the CIFAR-10 network: python scripts/benchmark.py [--json FILE]."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run the code of this checkout

from kfcnet.cli import benchmark  # noqa: E402

if __name__ == "__main__":
    sys.exit(benchmark())
