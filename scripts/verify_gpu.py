"""Test, time and train on this machine's GPU: python scripts/verify_gpu.py [--data synthetic]."""

import argparse
import math
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # run the code of this checkout

from kfcnet.benchmarks.verification import Unfinished, VerificationFailed, verify  # noqa: E402
from kfcnet.ops.errors import DeviceError  # noqa: E402

TOOLS = """What NVIDIA's tools add, a command each:
for tool in memcheck racecheck; do compute-sanitizer --tool $tool --error-exitcode 1 \\
    python -m pytest -q -m gpu tests/test_kernels_gemm.py tests/test_kernels_elementwise.py; done
ncu --set full --kernel-name regex:conv_forward_tf32 --launch-count 3 -o conv_forward \\
    python -m pytest -q -m gpu tests/test_cuda_real_step.py"""


def main(argv=None):
    """Exit status 0, 1 where something fails, 2 where there is no GPU, 3 where parts are left."""
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
        help="what the short trainings are on (default: cifar10 where it is, else synthetic)",
    )
    parser.add_argument("--path", metavar="PATH", help="where the data set lies")
    parser.add_argument(
        "--minutes",
        type=float,
        default=math.inf,
        metavar="N",
        help="begin no part later than this; the same command then goes on",
    )
    options = parser.parse_args(argv)
    try:
        print(verify(options.out, options.data, options.path, options.minutes))
        status = 0
    except DeviceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Unfinished as error:
        print(error)
        status = 3
    except VerificationFailed as error:
        print(
            f"error: on this GPU fail what is below; the rest is in the report:\n{error}",
            file=sys.stderr,
        )
        status = 1
    print(TOOLS)
    return status


if __name__ == "__main__":
    sys.exit(main())
