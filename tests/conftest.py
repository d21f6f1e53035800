"""One `ops` fixture over every device: the same tests hold for all of them."""

import time
from functools import partial

import cuda_on_cpu
import numpy as np
import pytest
from gpu import launch_twice

from kfcnet.figures import curves
from kfcnet.ops.cpu import CpuOps, cpu_ops
from kfcnet.ops.cuda import CudaOps, is_available

DEVICES = {
    "numpy-float64": lambda: CpuOps("float64", shards=2, native="off"),
    "numpy-float32": lambda: CpuOps("float32", shards=3, native="off"),
    "native-float32": lambda: CpuOps("float32", shards=2, native="on"),
    # Every launch under several orders of the threads, which must all give the same bits.
    "cuda-on-cpu": lambda: CudaOps(cuda_on_cpu.CpuRuntime(cuda_on_cpu.ORDERS)),
    "cuda": lambda: CudaOps(tensor_cores=False),
}
TENSOR_CORES = {
    "tf32-on-cpu": lambda: CudaOps(cuda_on_cpu.CpuRuntime(cuda_on_cpu.ORDERS, tensor_cores=True)),
    "tf32": lambda: CudaOps(tensor_cores=True),
}
MARKS = {"cuda": pytest.mark.gpu, "tf32": pytest.mark.gpu}


def _missing(device):
    """Why tests cannot run on a device here, or None."""
    if device == "native-float32" and cpu_ops._native is None:
        return "the C extension is not built"
    if device in MARKS and not is_available():
        return "there is no GPU, or no CuPy"
    return cuda_on_cpu.missing() if device.endswith("-on-cpu") else None


def _parameters(names):
    return [pytest.param(name, marks=MARKS.get(name, ())) for name in names]


def _made(device):
    if reason := _missing(device):
        pytest.skip(reason)
    return (DEVICES | TENSOR_CORES)[device]()


@pytest.fixture(params=_parameters(DEVICES))
def ops(request):
    """The array primitives of one device."""
    return _made(request.param)


@pytest.fixture(
    params=[
        pytest.param(name, marks=pytest.mark.slow if name == "cuda-on-cpu" else MARKS.get(name, ()))
        for name in DEVICES
    ]
)
def ops_of_many_shapes(request):
    """The same, for tests whose many shapes take the emulation a kernel each to compile."""
    return _made(request.param)


@pytest.fixture(params=_parameters(["cuda-on-cpu", "cuda"]))
def cuda(request):
    """The primitives that launch kernels: on the CPU, and on a GPU where there is one."""
    return _made(request.param)


@pytest.fixture(params=_parameters(["cuda-on-cpu", "cuda"]))
def new_cuda(request):
    """A function that makes such primitives, for whole trainings: launches in one order only."""
    if reason := _missing(request.param):
        pytest.skip(reason)
    if request.param == "cuda":
        return lambda tensor_cores=False: CudaOps(tensor_cores=tensor_cores)
    return lambda tensor_cores=False: CudaOps(cuda_on_cpu.CpuRuntime(tensor_cores=tensor_cores))


@pytest.fixture(params=_parameters(TENSOR_CORES))
def tensor_cores(request):
    """The same with TF32 products."""
    return _made(request.param)


@pytest.fixture(params=_parameters(["cuda-on-cpu", "cuda"]))
def device(request, monkeypatch):
    """Where a module's `launch_in_all_orders` launches: the CPU, and a GPU if there is one."""
    if reason := _missing(request.param):
        pytest.skip(reason)
    if request.param == "cuda":
        launch = partial(launch_twice, CudaOps())
        monkeypatch.setattr(request.module, "launch_in_all_orders", launch)


@pytest.fixture
def ops64():
    """Float64 primitives, for checks of mathematics rather than of devices."""
    return CpuOps("float64", shards=1)


@pytest.fixture
def rng():
    return np.random.default_rng(20160524)


@pytest.fixture
def takes(monkeypatch):
    """takes(owner, name, seconds): so long does owner.name take by the clock of the program."""
    now = [0.0]

    def takes(owner, name, seconds):
        original = getattr(owner, name)

        def slow(*args, **kwargs):
            now[0] += seconds
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, slow)

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    return takes


@pytest.fixture
def no_figures(monkeypatch):
    """Without the figures of single runs, which have tests of their own and take longer."""
    monkeypatch.setattr(curves, "plot_runs", lambda _, out: out.write_text("a figure"))
