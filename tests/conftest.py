"""One `ops` fixture over every device: the same tests hold for all of them."""

import numpy as np
import pytest

from kfcnet.ops import cpu
from kfcnet.ops.cpu import CpuOps

DEVICES = {
    "numpy-float64": lambda: CpuOps("float64", shards=2, native="off"),
    "numpy-float32": lambda: CpuOps("float32", shards=3, native="off"),
    "native-float32": lambda: CpuOps("float32", shards=2, native="on"),
}


@pytest.fixture(params=list(DEVICES))
def ops(request):
    """The array primitives of one device."""
    if request.param.startswith("native") and cpu._native is None:
        pytest.skip("the C extension is not built")
    return DEVICES[request.param]()


@pytest.fixture
def ops64():
    """Float64 primitives, for checks of mathematics rather than of devices."""
    return CpuOps("float64", shards=1)


@pytest.fixture
def rng():
    return np.random.default_rng(20160524)
