"""The runtime over CuPy, as far as it goes without a GPU: see fake_cupy.py."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import patch

import cuda_on_cpu
import fake_cupy
import numpy as np
import pytest
from checks import assert_close
from gpu import launch_twice
from networks import batches, network
from test_cuda_training import Training
from test_ranks import OPTIMIZERS

from kfcnet import ops as ops_package
from kfcnet.losses import SoftmaxCrossEntropy
from kfcnet.ops import get_ops, which_device
from kfcnet.ops.cpu import CpuOps
from kfcnet.ops.cuda import CudaOps, kernels
from kfcnet.ops.cuda import runtime as cuda_runtime
from kfcnet.ops.errors import DeviceError
from kfcnet.optimizers import build_optimizer

pytestmark = pytest.mark.skipif(
    cuda_on_cpu.missing() is not None, reason=str(cuda_on_cpu.missing())
)


@pytest.fixture
def fake():
    """The fake in CuPy's place."""
    kept = cuda_runtime._cupy, cuda_runtime._streams, cuda_runtime._libraries
    streams = patch.object(fake_cupy.Stream, "_of_thread", fake_cupy.Streams())
    with patch.dict(sys.modules, fake_cupy.modules()), streams:
        for function in kept:
            function.cache_clear()
        yield sys.modules["cupy"]
    for function in kept:
        function.cache_clear()


@pytest.fixture
def cuda(fake):
    """The primitives over the runtime, which finds the fake."""
    return CudaOps(tensor_cores=False)


def test_auto_takes_the_gpu_and_the_record_says_which(cuda):
    ops = get_ops("auto")
    assert ops.name == "cuda" and ops.tensor_cores
    assert ops.describe()["processor"] == "a fake"
    assert ops.describe()["compute_capability"] == "9.0"


def test_tensor_cores_are_used_where_there_are_any_unless_they_are_off(cuda):
    assert get_ops("cuda").tensor_cores and get_ops("cuda", tensor_cores="on").tensor_cores
    assert get_ops("cuda", tensor_cores="off").describe()["tensor_cores"] is False
    with pytest.raises(ValueError, match="ops.tensor_cores: 'yes' is not one of auto, on, off"):
        get_ops("cuda", tensor_cores="yes")
    with patch.object(fake_cupy.Device, "compute_capability", "75"):
        assert not get_ops("cuda").tensor_cores
        with pytest.raises(DeviceError, match="tensor_cores is on, but TF32 needs .* 8.0"):
            get_ops("cuda", tensor_cores="on")


def test_the_device_that_auto_took_is_told_in_a_line(cuda):
    assert which_device(get_ops("auto")) == "device: cuda, a fake"


def test_old_gpu_is_refused(cuda):
    with (
        patch.object(fake_cupy.Device, "compute_capability", "61"),
        pytest.raises(DeviceError, match="capability 6.1; the kernels need 7.5"),
    ):
        get_ops("cuda")


@pytest.mark.parametrize("raises", [False, True], ids=["CuPy 14", "CuPy 13"])
def test_cupy_without_a_driver_is_an_error_for_cuda_and_the_cpu_for_auto(fake, raises):
    failure = fake.cuda.runtime.CUDARuntimeError("insufficient driver") if raises else None
    with patch.object(fake.cuda, "is_available", return_value=False, side_effect=failure):
        assert get_ops("auto").name == "cpu"
        with pytest.raises(DeviceError, match="finds no NVIDIA GPU or no driver"):
            get_ops("cuda")


def driver_error(cupy):
    """What CuPy raises for code of a toolkit that is newer than the driver."""
    kind = type("CUDADriverError", (RuntimeError,), {"__module__": "cupy_backends.cuda.api.driver"})
    return kind("CUDA_ERROR_UNSUPPORTED_PTX_VERSION")


def busy_error(cupy):
    return cupy.cuda.runtime.CUDARuntimeError("cudaErrorDevicesUnavailable: busy or unavailable")


UNUSABLE = {
    "busy at the first stream": ("cuda.Stream", busy_error),
    "busy at the properties": ("cuda.runtime.getDeviceProperties", busy_error),
    "no NVRTC": (
        "RawModule.compile",
        lambda _: RuntimeError("CuPy failed to load libnvrtc.so.13:\nOSError: no such file"),
    ),
    "an NVRTC that cannot be opened": (
        "RawModule.compile",
        lambda _: OSError("libnvrtc-builtins.so.13: cannot open shared object file"),
    ),
    "a toolkit newer than the driver": ("RawModule.compile", driver_error),
    "no code for this GPU": ("RawModule.get_function", driver_error),
}


@pytest.mark.parametrize("place, error", UNUSABLE.values(), ids=UNUSABLE)
def test_a_gpu_that_cannot_be_used_is_one_line_for_cuda_and_the_cpu_for_auto(
    fake, place, error, caplog
):
    *path, name = place.split(".")
    owner = fake
    for part in path:
        owner = getattr(owner, part)
    failure = error(fake)
    ops_package._say_fallback.cache_clear()
    with patch.object(owner, name, side_effect=failure):
        with pytest.raises(DeviceError, match="^(the GPU|a fake): .*nvidia-smi.*device cpu$"):
            get_ops("cuda")
        assert get_ops("auto").name == get_ops("auto").name == "cpu"
    assert caplog.text.count("device auto is the CPU, for the GPU cannot be used. ") == 1
    assert str(failure).splitlines()[-1] in caplog.text
    assert get_ops("auto").name == "cuda"


@pytest.mark.parametrize("cause", [None, OSError("libcuda.so.1: no such file")])
def test_a_cupy_that_cannot_be_imported_says_in_a_line_how_to_get_it(fake, cause):
    page = ImportError("Failed to import CuPy.\n\nIf you installed CuPy via wheels ...")
    page.__cause__ = cause
    with (
        patch.dict(sys.modules, {"cupy": None}),
        patch("builtins.__import__", side_effect=page),
        pytest.raises(DeviceError) as error,
    ):
        cuda_runtime._cupy()
    text = str(error.value)
    assert "\n" not in text and str(cause or "Failed to import CuPy.") in text
    assert "pip install -e '.[cuda13]' in the checkout" in text


def test_errors_that_are_not_the_devices_stay_what_they_are(cuda):
    with (
        patch.object(cuda.runtime._cupy, "empty", side_effect=TypeError("of ours")),
        pytest.raises(TypeError, match="of ours"),
    ):
        cuda.empty(2)


def test_cupy_without_the_library_of_factorizations_says_how_to_get_it(cuda):
    with (
        patch.object(sys.modules["cupy.cuda"], "cusolver", None),
        patch.dict(vars(sys.modules["cupy.cuda"])) as names,
    ):
        del names["cusolver"]
        with pytest.raises(DeviceError, match=r"cuSOLVER.*pip install -e '\.\[cuda13\]'"):
            cuda.spd_inverse(cuda.asarray(np.eye(3)), cuda.asarray([0.5]))


@pytest.mark.slow
def test_training_follows_the_cpu_through_captured_steps(cuda):
    changes = dict(inverse_delay=1)
    expected = Training(CpuOps("float64", shards=1), "kfc_pre", **changes).losses()
    actual = Training(cuda, "kfc_pre", **changes).losses()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-4)


def test_absent_arrays_are_null_pointers(cuda, rng):
    theta, velocity, average, direction = (cuda.asarray(rng.standard_normal(5)) for _ in range(4))
    before = cuda.to_numpy(theta)
    cuda.momentum_update(theta, velocity, average, direction, 0.1, 0.0, None, 0.5)
    assert_close(cuda.to_numpy(theta), before - 0.1 * cuda.to_numpy(direction))


@pytest.mark.parametrize("on_host", [False, True], ids=["side stream", "host"])
def test_inverse_beside_the_steps(cuda, rng, on_host):
    root = rng.standard_normal((5, 5))
    pending = cuda.submit(
        lambda ops, a: (ops.spd_inverse(a, ops.asarray([0.5])),),
        cuda.asarray(root @ root.T),
        on_host=on_host,
    )
    assert_close(
        cuda.to_numpy(*pending.result()), np.linalg.inv(root @ root.T + 0.5 * np.eye(5)), 1e-4
    )


def test_inverse_that_fails_is_an_error(cuda):
    with pytest.raises(np.linalg.LinAlgError, match="positive definite"):
        cuda.spd_inverse(cuda.asarray(-np.eye(3)), cuda.asarray([0.5]))


@pytest.mark.parametrize("entry", [0.0, np.nan])
def test_eigenvalues_that_are_not_found_are_an_error(cuda, entry):
    report = np.linalg.LinAlgError("Error reported by xsyevd in cuSOLVER. devInfo = 3.")
    with (
        patch.object(cuda.runtime._cupy.linalg, "eigh", side_effect=report) as eigh,
        pytest.raises(np.linalg.LinAlgError, match="converge"),
    ):
        cuda.eigh(cuda.asarray(np.full((3, 3), entry)))
    assert eigh.called == (entry == 0)


def test_array_of_another_gpu_is_refused(cuda):
    x = cuda.zeros(4)
    with (
        patch.object(fake_cupy.Device, "id", property(lambda device: id(device))),
        pytest.raises(ValueError, match="relu: an array lies on GPU"),
    ):
        cuda.relu(x)


def test_grid_that_no_gpu_takes_is_refused(cuda):
    with pytest.raises(ValueError, match="relu: a grid of 1 x 65536 blocks.* a smaller batch"):
        cuda.launch("relu", "relu", (1, 65536), cuda.zeros(4), cuda.zeros(4), 4)


def test_compile_error_names_source_architecture_and_log(cuda):
    with (
        patch.object(kernels, "source", lambda file: "unknown text"),
        pytest.raises(DeviceError, match="relu.cu does not compile for sm_90(.|\n)*unknown"),
    ):
        cuda.relu(cuda.zeros(4))


def test_lack_of_memory_and_failed_launches_are_device_errors(cuda):
    with (
        patch.object(cuda.runtime._cupy, "empty", side_effect=MemoryError("8 bytes")),
        pytest.raises(DeviceError, match="out of memory: 8 bytes.*batch_size"),
    ):
        cuda.empty(2)
    x, failure = cuda.zeros(4), cuda.runtime._cupy.cuda.runtime.CUDARuntimeError("illegal access")
    cuda.relu(x)
    with (
        patch.object(cuda.runtime._cupy, "asnumpy", side_effect=failure),
        pytest.raises(DeviceError, match="illegal access. Kernels .* relu"),
    ):
        cuda.to_numpy(x)
    library = sys.modules["cupy.cuda"].cusolver
    failure = library.CUSOLVERError("CUSOLVER_STATUS_ALLOC_FAILED")
    with (
        patch.object(library, "spotrf", side_effect=failure),
        pytest.raises(DeviceError, match="a fake: CUSOLVER_STATUS_ALLOC_FAILED"),
    ):
        cuda.spd_inverse(cuda.asarray(np.eye(3)), cuda.asarray([0.5]))


def test_failing_device_is_an_error_of_its_own_wherever_it_is_noticed(cuda):
    failure = cuda.runtime._cupy.cuda.runtime.CUDARuntimeError("illegal access")
    step = cuda.captured(cuda.relu)
    step(cuda.zeros(4))
    pending = cuda.submit(lambda ops, a: (a,), cuda.zeros(4))
    mark, (stream, event) = cuda.event(), (fake_cupy.Stream, fake_cupy.Event)
    for where, name, act in (
        (stream, "begin_capture", lambda: step(cuda.zeros(4))),
        (stream, "wait_event", pending.result),
        (stream, "synchronize", cuda.runtime.synchronize),
        (stream, "record", lambda: cuda.submit(lambda ops, a: (a,), cuda.zeros(4))),
        (event, "record", cuda.event),
        (cuda.runtime._cupy.cuda, "get_elapsed_time", lambda: cuda.seconds_between(mark, mark)),
    ):
        with (
            patch.object(where, name, side_effect=failure),
            pytest.raises(DeviceError, match="illegal access"),
        ):
            act()
        assert not cuda.runtime.capturing


def test_memory_that_graphs_write_to_is_counted_and_kept(cuda):
    x = cuda.zeros(5)
    step = cuda.captured(cuda.relu)
    before = cuda.runtime.allocated()
    step(x)
    assert cuda.runtime.allocated() == before + x.nbytes
    (held,) = cuda.runtime._pools
    assert [memory.size for memory in held] == [x.nbytes]  # nobody else refers to them


def test_memory_that_cupys_own_pool_keeps_is_given_back_for_captured_steps_where_it_is_short(cuda):
    cuda_module = cuda.runtime._cupy.cuda
    short = cuda_module.runtime.CUDARuntimeError("cudaErrorMemoryAllocation: out of memory")
    with (
        patch.object(
            cuda_module.memory, "Memory", side_effect=[short, fake_cupy.Memory(8)]
        ) as take,
        patch.object(cuda.runtime._cupy, "get_default_memory_pool") as pool,
    ):
        cuda.captured(cuda.relu)(cuda.zeros(2))
        assert take.call_count == 2 and pool().free_all_blocks.call_count == 1
    step = cuda.captured(cuda.relu)
    step(cuda.zeros(2))
    with (
        patch.object(cuda_module.memory, "Memory", side_effect=short),
        patch.object(cuda.runtime._cupy, "get_default_memory_pool") as pool,
        pytest.raises(DeviceError, match="out of memory"),
    ):
        step(cuda.zeros(2))
    assert not pool().free_all_blocks.called  # of a capture, which giving back would break


def streams_of_launches(act):
    """The streams that are current in the launches and copies of act()."""
    seen, do = [], fake_cupy._do

    def noted(action):
        seen.append(fake_cupy.Stream._of_thread.entered[-1])
        do(action)

    with patch.object(fake_cupy, "_do", noted):
        act()
    return seen


def test_work_goes_to_the_runtimes_own_stream_from_any_thread_and_within_anyones_stream(cuda):
    x = cuda.zeros(3)

    def three_steps():
        step = cuda.captured(lambda x: cuda.relu(x))
        for _ in range(3):
            step(x)

    def within_anothers():
        with fake_cupy.Stream(non_blocking=True):
            three_steps()

    with ThreadPoolExecutor(1) as thread:
        for seen in (
            streams_of_launches(three_steps),
            streams_of_launches(within_anothers),
            thread.submit(streams_of_launches, three_steps).result(),
        ):
            assert seen and set(seen) == {cuda.runtime._stream}


def test_arithmetic_on_arrays_comes_after_the_kernels_that_made_them(cuda):
    """It is queued where they are: the null stream does not wait for the main one."""
    x = cuda.asarray([1.0, 3.0])

    def halved(ops, x):
        doubled = ops.relu(x) * 2
        doubled[0] = 5.0
        return (ops.relu(doubled) / 4,)

    runtime = cuda.runtime
    seen, beside = streams_of_launches(lambda: halved(cuda, x)), []
    assert len(seen) == 5 and set(seen) == {runtime._stream}  # relu, *, [0] =, relu, /
    runtime.on_side_stream(lambda: beside.extend(streams_of_launches(lambda: halved(cuda, x))))
    assert len(beside) == 5 and set(beside) == {runtime._side}
    assert runtime._cupy.cuda.get_current_stream() is runtime._stream


def test_arithmetic_within_a_captured_step_is_repeated_in_its_branch(cuda):
    runtime, beside = cuda.runtime, []

    def step(x):
        with cuda.beside():
            beside.extend(streams_of_launches(lambda: cuda.relu(x) * 2))
            doubled = cuda.relu(x) * 2
        cuda.join()
        return doubled + 1

    replayed, x = cuda.captured(step), cuda.zeros(2)
    for value in (1.0, 2.0, 3.0, 4.0):
        cuda.write(x, value)
        assert_close(cuda.to_numpy(replayed(x)), np.full(2, 2 * value + 1))
    assert runtime._side in beside and beside[-1] is runtime._side


def test_a_thread_is_left_on_the_stream_of_the_runtime_that_it_used_last(cuda):
    def in_another_thread():
        own, current = CudaOps(tensor_cores=False).runtime, cuda.runtime._cupy.cuda
        return [
            (runtime.zeros(2, np.float32), current.get_current_stream() is runtime._stream)[1]
            for runtime in (cuda.runtime, own, cuda.runtime, own)
        ] + [len(fake_cupy.Stream._of_thread.entered) == 2]

    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(in_another_thread).result() == [True] * 5


def test_a_stream_that_the_caller_has_open_and_ours_wait_for_each_other(cuda):
    current, own = cuda.runtime._cupy.cuda.get_current_stream, fake_cupy.Stream(non_blocking=True)
    main, waits = cuda.runtime._stream, []

    def noted(stream, event):
        waits.append((stream, event.recorded_on))

    with patch.object(fake_cupy.Stream, "wait_event", noted), own:
        doubled = cuda.zeros(2) * 2
        assert waits == [(main, own), (own, main)] and current() is own
        cuda.relu(doubled)
        assert set(waits[2:]) == {(main, own), (own, main)}
        program = cuda.captured(lambda x: cuda.relu(x))
        for _ in range(3):
            program(doubled)
    cuda.zeros(2)
    assert current() is main


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_optimizer_leaves_work_to_the_null_stream(cuda, rng, name):
    """The stand-in refuses it, as it does what leaves a capture."""
    optimizer = build_optimizer(OPTIMIZERS[name], network(cuda), SoftmaxCrossEntropy(cuda, 3))
    first, *others = batches(cuda, rng, 6)
    if optimizer.needs_preparation:
        optimizer.prepare([first])
    for batch in others:
        optimizer.step(batch)
    assert np.isfinite(cuda.to_numpy(optimizer.network.theta)).all()


def test_runtimes_share_streams_within_a_thread_and_with_no_other(cuda):
    with ThreadPoolExecutor(1) as thread:
        other = thread.submit(lambda: CudaOps(tensor_cores=False)).result()
    own = cuda.runtime._stream, cuda.runtime._side, cuda.runtime._fetching
    again = CudaOps(tensor_cores=False).runtime
    assert (again._stream, again._side, again._fetching) == own
    assert not {other.runtime._stream, other.runtime._side, other.runtime._fetching} & set(own)


def test_a_runtime_has_streams_of_its_own_gpu(cuda):
    with patch.object(fake_cupy.Device, "id", 1):
        assert CudaOps(tensor_cores=False).runtime._stream is not cuda.runtime._stream


@pytest.mark.parametrize(
    "act, what",
    [
        (lambda ops: ops.submit(lambda ops, a: (ops.relu(a),), ops.empty(4)), "work to the second"),
        (lambda ops: ops.runtime.synchronize(), "the host along"),
    ],
)
def test_what_a_captured_step_would_not_repeat_is_refused(cuda, act, what):
    step = cuda.captured(lambda x: act(cuda))
    step(cuda.zeros(4))
    with pytest.raises(RuntimeError, match=f"captured step cannot move {what}"):
        step(cuda.zeros(4))


def test_kernel_tests_find_their_results_in_their_own_arrays(cuda):
    x, y = np.array([-1, 2, -3], np.float32), np.full(3, np.nan, np.float32)
    launch_twice(cuda, "relu", "relu", (1,), (32,), [x, y, 3], {})
    np.testing.assert_array_equal(y, [0, 2, 0])
    launch_twice(cuda, "relu", "relu", (1,), (32,), [x, x, 3], {})
    np.testing.assert_array_equal(x, [0, 2, 0])


def test_kernel_that_differs_from_launch_to_launch_fails_its_test(cuda):
    results = [np.zeros(3, np.float32), np.ones(3, np.float32)]
    with (
        patch.object(cuda, "to_numpy", side_effect=lambda array: results.pop()),
        pytest.raises(AssertionError, match="relu differs"),
    ):
        x = np.zeros(3, np.float32)
        launch_twice(cuda, "relu", "relu", (1,), (32,), [x, x, 3], {})


def test_a_capture_takes_in_the_second_stream_and_joins_it(cuda):
    def step(x):
        with cuda.beside():
            y = cuda.relu(x)
        return y

    program, x = cuda.captured(step), np.array([-1, 3], np.float32)
    for _ in range(3):
        np.testing.assert_array_equal(cuda.to_numpy(program(x)), [0, 3])
    program = cuda.captured(step)
    program(x)
    with (
        patch.object(cuda.runtime, "join_branch"),
        pytest.raises(DeviceError, match="StreamCaptureUnjoined"),
    ):
        program(x)
    assert not cuda.runtime.capturing and not fake_cupy.captured


def test_host_data_inside_a_captured_step_are_refused(cuda):
    step = cuda.captured(lambda x: cuda.axpy(1.0, cuda.asarray(np.ones(4)), x))
    step(cuda.zeros(4))
    with pytest.raises(RuntimeError, match="captured step cannot move data from the host"):
        step(cuda.zeros(4))
    assert not fake_cupy.captured


@pytest.mark.parametrize("tensor_cores", [False, True])
@pytest.mark.parametrize("transpose_a", [False, True])
def test_the_librarys_product_is_that_of_rows(cuda, rng, tensor_cores, transpose_a):
    a, b = (cuda.asarray(rng.standard_normal(shape)) for shape in ((5, 3), (3, 4)))
    out = cuda.empty((5, 4))
    fake_cupy.math_modes.clear()
    given = cuda.asarray(cuda.to_numpy(a).T) if transpose_a else a
    cuda.runtime.library_product(given, b, out, tensor_cores, transpose_a)
    assert_close(cuda.to_numpy(out), cuda.to_numpy(a) @ cuda.to_numpy(b), 1e-6)
    assert fake_cupy.math_modes == [3 if tensor_cores else 0, 0]


def test_sources_are_compiled_side_by_side_once_and_shown(cuda):
    wanted = [("relu", ()), ("vector", ()), ("reduce", ())]
    shown, compile_module = [], fake_cupy.RawModule.compile
    with patch.object(fake_cupy.RawModule, "compile", autospec=True) as compiled:
        compiled.side_effect = compile_module
        cuda.runtime.compile(wanted, lambda *numbers: shown.append(numbers))
        cuda.relu(cuda.zeros(4))
        cuda.axpy(1.0, cuda.zeros(4), cuda.zeros(4))
        cuda.runtime.compile(wanted, lambda *numbers: shown.append(numbers))
    assert compiled.call_count == 3 and shown == [(1, 3), (2, 3), (3, 3)]


def test_two_sources_are_under_way_at_a_time(cuda):
    meeting = threading.Barrier(2, timeout=10)  # each waits in the compiler for another one
    with (
        patch.object(cuda_runtime.os, "cpu_count", lambda: 2),
        patch.object(fake_cupy.RawModule, "compile", lambda module: meeting.wait()),
    ):
        cuda.runtime.compile([("relu", ()), ("vector", ())])
    assert not meeting.broken


def test_a_tile_in_dynamic_shared_memory_has_what_it_asks_for(cuda, rng):
    """More than 48 KB have to be asked for; without a preference a kernel may get L1 instead."""
    launched, launch = [], fake_cupy.RawKernel.__call__

    def noted(kernel, *args, shared_mem=0):
        launched.append((shared_mem, kernel.max_dynamic_shared_size_bytes))
        launch(kernel, *args, shared_mem=shared_mem)

    x, weight = rng.standard_normal((1, 12, 12, 40)), rng.standard_normal((3, 1001))
    with patch.object(fake_cupy.RawKernel, "__call__", noted):
        found = cuda.to_numpy(cuda.conv_forward(*map(cuda.asarray, (x, weight)), 5, 1, 2))
    assert max(launched) > (48 * 1024, 48 * 1024), launched
    assert_close(found, CpuOps("float64").conv_forward(x, weight, 5, 1, 2), 1e-5)
