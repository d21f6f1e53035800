"""Test, time and train on this machine's GPU: python scripts/verify_gpu.py [--data synthetic]."""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run the code of this checkout

from kfcnet.benchmarks.verification import VerificationFailed, verify  # noqa: E402
from kfcnet.ops.errors import DeviceError  # noqa: E402


def main(argv=None):
    """Exit status 0, 1 where the GPU's tests fail, 2 where there is no GPU."""
    parser = argparse.ArgumentParser(description="Test, time and train on this machine's GPU.")
    parser.add_argument(
        "--out",
        type=Path,
        default=ROOT / "results" / "gpu",
        metavar="DIR",
        help="folder of the report (default: results/gpu)",
    )
    parser.add_argument(
        "--data",
        choices=("cifar10", "synthetic"),
        default="cifar10",
        help="what the short trainings are on (default: cifar10)",
    )
    parser.add_argument("--path", metavar="PATH", help="where the data set lies")
    options = parser.parse_args(argv)
    try:
        print(verify(options.out, options.data, options.path))
    except DeviceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except VerificationFailed as error:
        print(f"error: tests on the GPU fail; the rest is in the report:\n{error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
