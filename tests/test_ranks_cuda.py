"""Processes with a GPU each: the launchers under two ranks, and what the runtime asks of NCCL."""

import sys
import threading

import cuda_on_cpu
import fake_cupy
import numpy as np
import pytest
from networks import EVERY_LAYER, network
from test_cuda_runtime import fake  # noqa: F401  a fixture
from test_ranks import NORMALISED, OPTIMIZERS, M, batches
from thread_ranks import on_ranks

from kfcnet import ops as ops_package
from kfcnet import philox
from kfcnet.batches import Examples, Loader
from kfcnet.curvature import block
from kfcnet.losses import SoftmaxCrossEntropy
from kfcnet.ops import get_ops
from kfcnet.ops.cpu import CpuOps
from kfcnet.ops.cuda import CudaOps
from kfcnet.ops.cuda import runtime as cuda_runtime
from kfcnet.ops.errors import DeviceError
from kfcnet.optimizers import build_optimizer
from kfcnet.ranks import Alone, is_of_all, process_of

pytestmark = pytest.mark.skipif(
    cuda_on_cpu.missing() is not None, reason=str(cuda_on_cpu.missing())
)
UPDATES = 6


def on_kernels(ranks, tensor_cores=False):
    return CudaOps(cuda_on_cpu.CpuRuntime(), tensor_cores, ranks)


def trained(ops, config, layers):
    """An optimizer after UPDATES updates, each of which was captured at its second time."""
    optimizer = build_optimizer(config, network(ops, layers), SoftmaxCrossEntropy(ops, 3))
    stream = list(batches(ops, UPDATES))
    optimizer.prepare(stream[:2])
    for batch in stream:
        optimizer.step(batch)
    return optimizer


@pytest.mark.parametrize(
    "name, layers",
    [
        pytest.param("sgd", EVERY_LAYER, marks=pytest.mark.slow),
        ("kfc_pre", NORMALISED),
        pytest.param("kfc_pre with a delay", EVERY_LAYER, marks=pytest.mark.slow),
    ],
)
def test_two_processes_on_the_kernels_take_the_steps_of_one_on_the_cpu(name, layers):
    config = OPTIMIZERS[name]
    expected = trained(CpuOps("float64", shards=1), config, layers).network.theta
    first, second = on_ranks(
        2, lambda ranks: trained(on_kernels(ranks), config, layers).network.theta
    )
    assert np.isfinite(first).all() and first.tobytes() == second.tobytes()
    assert np.abs(expected - network(CpuOps("float64"), layers).theta).max() > 1e-3
    np.testing.assert_allclose(first, expected, rtol=0, atol=1e-5)


def test_two_processes_on_the_kernels_share_the_preconditioning_of_wide_layers(monkeypatch):
    config = OPTIMIZERS["kfc_pre"]
    expected = trained(CpuOps("float64", shards=1), config, EVERY_LAYER).network.theta
    monkeypatch.setattr(block, "WIDE", 17)

    def shared(ranks):
        optimizer = trained(on_kernels(ranks), config, EVERY_LAYER)
        return optimizer.network.theta, ranks.calls.count("sum of [(3, 19), (4, 13)]")

    (first, count), (second, _) = on_ranks(2, shared)
    assert count >= UPDATES and first.tobytes() == second.tobytes()
    np.testing.assert_allclose(first, expected, rtol=0, atol=1e-5)


def test_the_sums_of_a_step_are_part_of_its_graph():
    def calls(ranks):
        optimizer = trained(on_kernels(ranks), OPTIMIZERS["sgd"], EVERY_LAYER)
        batch = next(batches(optimizer.ops, 1))
        before, launches = len(ranks.calls), optimizer.ops.runtime.launches
        optimizer.advance(M, optimizer._captured_update, batch)
        assert optimizer.ops.runtime.launches == launches  # it was a replay
        return ranks.calls[before:], len(optimizer.network.theta)

    (found, n), other = on_ranks(2, calls)
    assert found == other[0] == [f"sum of [({n},), (2,)]"]


@pytest.mark.parametrize("width", [1, 3, 4, 6])
def test_random_numbers_of_two_processes_are_those_of_one_at_their_places(width):
    def draw(ranks):
        ops = on_kernels(ranks)
        x = ops.asarray(np.ones((5, width), np.float32))
        return (
            ops.uniforms(5 * width, 3, philox.TARGETS, 7, width=width),
            ops.normals(5 * width, 3, philox.TARGETS, 7, width=width),
            ops.dropout(x, 0.6, 3, 7, 2)[1].reshape(-1),
        )

    for own, other in zip(*on_ranks(2, draw), strict=True):
        both = np.stack([own.reshape(5, width), other.reshape(5, width)], axis=1).reshape(-1)
        if both.dtype == np.uint8:
            numbers = philox.uniforms(3, philox.DROPOUT, 7, 10 * width, 2)
            assert np.array_equal(both, numbers < 0.6)
        elif (both >= 0).all() and (both < 1).all():
            assert np.array_equal(both, philox.uniforms(3, philox.TARGETS, 7, 10 * width))
        else:
            numbers = philox.normals(3, philox.TARGETS, 7, 10 * width)
            np.testing.assert_allclose(both, numbers, rtol=1e-5, atol=1e-6)


def test_shares_of_a_mini_batch_are_drawn_on_the_device_as_by_the_host():
    rng = np.random.default_rng(2)
    images = rng.integers(0, 256, (11, 3, 2, 1)).astype(np.uint8)
    labels = rng.integers(0, 4, 11).astype(np.int32)

    def drawn(ranks):
        ops = on_kernels(ranks)
        loader = Loader(Examples(ops, images, labels, np.zeros((3, 2, 1)), 1.0), 6, seed=1)
        found = []
        for step in range(4):  # over the border between two epochs
            loader.provide(step)
            batch, same = loader.draw(step), loader.batch(step)
            assert np.array_equal(batch.inputs, same.inputs)
            found.append((ops.to_numpy(batch.targets), loader.sequence.indices(step)))
        return found

    for own, other in zip(*on_ranks(2, drawn), strict=True):
        both = np.stack([own[0], other[0]], axis=1).reshape(-1)
        assert np.array_equal(both, labels[own[1]])


# NCCL


class Stub(Alone):
    """The first of two ranks whose other one does the same, on another GPU or on the same."""

    count = 2

    def __init__(self, other=lambda value: value):
        self._other = other

    def allgather(self, value):
        return [value, self._other(value)]


ELSEWHERE = Stub(lambda value: ("another machine", "0000:02:00.0") if value else value)


@pytest.fixture
def nccl(fake):  # noqa: F811
    return sys.modules["cupy.cuda.nccl"]


def test_sums_and_broadcasts_are_groups_on_the_main_stream_in_their_order(nccl):
    ops = CudaOps(tensor_cores=False, ranks=ELSEWHERE)
    (communicator,) = nccl.communicators
    assert (communicator.count, communicator.rank) == (2, 0)
    a, b = ops.asarray(np.arange(6.0)), ops.asarray([[1.0, 2.0]])
    ops.ranks.sum(a, b)
    ops.ranks.broadcast(1, b)
    stream = ops.runtime._stream.ptr
    assert nccl.calls == [
        [("allReduce", 6, stream), ("allReduce", 2, stream)],
        [("broadcast", 2, 1, stream)],
    ]
    assert np.array_equal(a, 2 * np.arange(6.0)) and np.array_equal(b, [[2.0, 4.0]])


def test_a_captured_step_sums_at_every_replay(nccl):
    ops = CudaOps(tensor_cores=False, ranks=ELSEWHERE)
    total = ops.asarray([1.0])
    step = ops.captured(lambda: ops.ranks.sum(total))
    for updates in range(1, 5):
        step()
        assert total[0] == 2.0**updates
    assert len(nccl.calls) == 2  # the first, which was eager, and that of the capture


def test_two_processes_on_one_gpu_are_refused(nccl):
    with pytest.raises(DeviceError, match="processes 1 and 2 of 2 have the same GPU") as caught:
        CudaOps(ranks=Stub())
    assert is_of_all(caught.value)


@pytest.fixture(params=["none", "too old a one"])
def lacking(request, fake, monkeypatch):  # noqa: F811
    """lacking(number, ranks): let the process of that number have no GPU, or one of no use."""
    here = threading.local()  # .lacks, in the thread of each process

    def cupy():
        if here.lacks and request.param == "none":
            raise DeviceError("no GPU here")
        return fake

    def of_each(lacks, has):
        return property(lambda _: lacks if here.lacks else has)

    monkeypatch.setattr(cuda_runtime, "_cupy", cupy)
    monkeypatch.setattr(fake_cupy.Device, "pci_bus_id", of_each("0000:01:00.0", "0000:02:00.0"))
    monkeypatch.setattr(fake_cupy.Device, "compute_capability", of_each("61", "90"))
    return lambda number, ranks: setattr(here, "lacks", ranks.rank == number)


@pytest.mark.parametrize("number, told", [(0, ""), (1, "process 2 of 2: ")])
def test_a_gpu_that_one_process_lacks_is_told_as_its_own_and_ends_all_whichever_process_it_is(
    lacking, number, told
):
    def failure(ranks):
        lacking(number, ranks)
        with pytest.raises(DeviceError, match="no GPU here|capability 6.1") as caught:
            get_ops("cuda", ranks=ranks)
        return is_of_all(caught.value), process_of(caught.value)

    assert on_ranks(2, failure) == [(True, told)] * 2


@pytest.mark.parametrize("number", [0, 1])
def test_where_one_process_lacks_a_gpu_auto_is_the_cpu_for_all_and_says_which(
    lacking, number, caplog
):
    ops_package._say_fallback.cache_clear()

    def name(ranks):
        lacking(number, ranks)
        return get_ops("auto", ranks=ranks).name

    assert on_ranks(2, name) == ["cpu", "cpu"]
    said = "process 2 of 2: " * number
    assert f"the GPU cannot be used. {said}" in caplog.text


def test_a_process_that_nccl_fails_alone_takes_no_other_device_than_the_others(
    lacking, nccl, monkeypatch
):
    def fail(count, identifier, rank):
        raise RuntimeError("NCCL_ERROR_SYSTEM_ERROR")

    monkeypatch.setattr(nccl, "NcclCommunicator", fail)
    monkeypatch.setattr(cuda_runtime, "machine", lambda: f"machine {threading.get_ident()}")

    def failure(ranks):
        lacking(None, ranks)
        with pytest.raises(DeviceError, match="NCCL_ERROR_SYSTEM_ERROR") as caught:
            get_ops("auto", ranks=ranks)
        return is_of_all(caught.value)

    assert on_ranks(2, failure) == [False, False]


def test_without_nccl_the_way_out_is_said(nccl, monkeypatch):
    monkeypatch.setattr(nccl, "available", False)
    with pytest.raises(DeviceError, match=r"NCCL, which CuPy does not find: .*\.\[nccl13\]"):
        CudaOps(ranks=ELSEWHERE)
    monkeypatch.delitem(sys.modules, "cupy.cuda.nccl")
    monkeypatch.delattr(sys.modules["cupy.cuda"], "nccl")
    with pytest.raises(DeviceError, match=r"NCCL, which CuPy cannot load .*\.\[nccl13\]"):
        CudaOps(ranks=ELSEWHERE)


def test_an_error_of_a_launch_warns_of_blocking_launches_where_there_are_several_processes(nccl):
    ops = CudaOps(tensor_cores=False, ranks=ELSEWHERE)
    ops.relu(ops.asarray([1.0]))
    with pytest.raises(DeviceError, match="CUDA_LAUNCH_BLOCKING=1 .*several may hang with it"):
        with ops.runtime._errors():
            raise RuntimeError("an illegal address")


NAMES = (
    "NCCL_FLOAT32",
    "NCCL_SUM",
    "NcclCommunicator",
    "available",
    "get_unique_id",
    "groupEnd",
    "groupStart",
)


def test_the_stand_in_has_the_names_that_the_runtime_uses_and_no_others(nccl):
    own = {"calls", "communicators"}
    assert {name for name in vars(nccl) if not name.startswith("__")} - own == set(NAMES)
    assert cuda_runtime.NCCL_SETTINGS["NCCL_NVLS_ENABLE"] == "0"


def test_the_real_wheel_has_these_names():
    try:
        from cupy.cuda import nccl
    except ImportError as error:
        pytest.skip(f"the wheel of CuPy or NCCL is not installed: {error}")
    for name in NAMES:
        assert hasattr(nccl, name), name
    assert (nccl.NCCL_FLOAT32, nccl.NCCL_SUM) == (fake_cupy.FLOAT32, fake_cupy.SUM)
    calls = {
        name: getattr(nccl.NcclCommunicator, name).__doc__ for name in ("allReduce", "broadcast")
    }
    assert (
        "(self, intptr_t sendbuf, intptr_t recvbuf, size_t count, int datatype, int op, "
        in (calls["allReduce"])
    )
    assert "count, int datatype, int root, intptr_t stream)" in calls["broadcast"]
