"""One `ops` fixture over every device: the same tests hold for all of them."""

import numpy as np
import pytest

import cuda_on_cpu
from kfcnet.ops import cpu
from kfcnet.ops.cpu import CpuOps
from kfcnet.ops.cuda import CudaOps, is_available

DEVICES = {
    "numpy-float64": lambda: CpuOps("float64", shards=2, native="off"),
    "numpy-float32": lambda: CpuOps("float32", shards=3, native="off"),
    "native-float32": lambda: CpuOps("float32", shards=2, native="on"),
    # Every launch under several orders of the threads, which must all give the same bits.
    "cuda-on-cpu": lambda: CudaOps(cuda_on_cpu.CpuRuntime(cuda_on_cpu.ORDERS)),
    "cuda": lambda: CudaOps(tensor_cores=False),
}
MARKS = {"cuda": pytest.mark.gpu}


def _missing(device):
    """Why tests cannot run on a device here, or None."""
    if device == "native-float32" and cpu._native is None:
        return "the C extension is not built"
    if device == "cuda" and not is_available():
        return "there is no GPU, or no CuPy"
    return cuda_on_cpu.missing() if device == "cuda-on-cpu" else None


@pytest.fixture(params=[pytest.param(name, marks=MARKS.get(name, ())) for name in DEVICES])
def ops(request):
    """The array primitives of one device."""
    if reason := _missing(request.param):
        pytest.skip(reason)
    return DEVICES[request.param]()


@pytest.fixture
def ops64():
    """Float64 primitives, for checks of mathematics rather than of devices."""
    return CpuOps("float64", shards=1)


@pytest.fixture
def rng():
    return np.random.default_rng(20160524)
