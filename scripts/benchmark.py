"""Time training steps of the CIFAR-10 network: python scripts/benchmark.py [--json FILE]."""

import sys

from kfcnet.cli import benchmark

if __name__ == "__main__":
    sys.exit(benchmark())
