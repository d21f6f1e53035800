"""As much of CuPy as `kfcnet/ops/cuda/runtime.py` uses, over NumPy and the kernels on the CPU.

It shows that the runtime calls what it means to call, in an order that works; what a GPU does with
it, only a GPU can show. That CuPy has the names which are used here, test_cupy_names.py shows.
"""

import contextlib
import ctypes
import threading
import time
from types import ModuleType, SimpleNamespace

import numpy as np
from cuda_on_cpu import KernelError, Library

captured = []  # the stack of Captures that launches are recorded into


class ndarray(np.ndarray):  # noqa: N801
    """Arithmetic on it is queued on the current stream, as that of CuPy is."""

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        inputs = [each.view(np.ndarray) if isinstance(each, ndarray) else each for each in inputs]
        results = None if out is None else tuple(each.view(np.ndarray) for each in out)

        def compute():
            return getattr(ufunc, method)(*inputs, out=results, **options)

        if results is None:
            made = compute()  # for its shape, if it is captured
            results = made if isinstance(made, tuple) else (np.asarray(made),)
        _do(compute)
        made = out or tuple(result.view(ndarray) for result in results)
        return made[0] if len(made) == 1 else made

    def __setitem__(self, key, value):
        _do(lambda: super(ndarray, self).__setitem__(key, value))

    @property
    def device(self):
        return Device()

    @property
    def data(self):
        return SimpleNamespace(ptr=self.ctypes.data)


def _here(array):
    return np.ascontiguousarray(array).view(ndarray)


def _do(action):
    stream = Stream._of_thread.entered[-1]
    assert stream.ptr, "the null stream, which no work of ours is queued on"
    if not captured:
        action()
        return
    capture = captured[-1]
    assert stream in capture.queued, "the stream has no part in the capture"
    capture.actions.append(action)
    capture.queued[stream] += 1


class Capture:
    """actions; queued: how many of them on each stream, `known` how many of each come before what
    a stream queues next.
    """

    def __init__(self, origin):
        self.actions, self.origin = [], origin
        self.queued, self.known = {origin: 0}, {origin: {}}

    def seen_by(self, stream):
        """What an event recorded on a stream stands for."""
        return self.known[stream] | {stream: self.queued[stream]}

    def follow(self, stream, seen):
        """Let a stream, which then has a part in the capture, wait for an event."""
        self.queued.setdefault(stream, 0)
        known = self.known.setdefault(stream, {})
        known |= {one: max(count, known.get(one, 0)) for one, count in seen.items()}

    def end(self):
        """Raises what CUDA raises where a stream was never joined."""
        known = self.seen_by(self.origin)
        if any(known.get(stream, -1) < count for stream, count in self.queued.items()):
            raise CUDARuntimeError("cudaErrorStreamCaptureUnjoined: unjoined work")
        return Graph(self.actions)


class CUDARuntimeError(RuntimeError):
    __module__ = "cupy_backends.cuda.api.runtime"


class Device:
    id, compute_capability, pci_bus_id = 0, "90", "0000:01:00.0"

    def __init__(self, index=0):
        pass

    def use(self):
        pass

    def __eq__(self, other):
        return self.id == other.id

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


class Event:
    _seen = None  # of a capture, where it was recorded in one

    def record(self, stream=None):
        self.time, self.recorded_on = time.perf_counter(), stream
        if captured and stream in captured[-1].queued:
            self._seen = captured[-1].seen_by(stream)

    def synchronize(self):
        pass


class Streams(threading.local):
    """The streams of a thread's open `with` blocks; below them the null stream."""

    def __init__(self):
        self.entered = [Stream.null]


class Stream:
    """Without `use`: after the next `with` block on any stream the null stream is the current one,
    which is what CuPy makes of a stream that was only used.
    """

    def __init__(self, ptr=None, non_blocking=False):
        assert non_blocking or ptr is not None
        self.ptr = id(self) if ptr is None else ptr

    def __enter__(self):
        self._of_thread.entered.append(self)
        return self

    def __exit__(self, *_):
        self._of_thread.entered.pop()

    def record(self, event=None):
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event):
        assert isinstance(event, Event)
        if captured:
            captured[-1].follow(self, event._seen)

    def synchronize(self):
        assert not captured, "a stream that captures cannot be waited for"

    def begin_capture(self, mode=None):
        captured.append(Capture(self))

    def end_capture(self):
        assert captured[-1].origin is self
        return captured.pop().end()


Stream.null, Stream.ptds = Stream(0), Stream(2)
Stream._of_thread = Streams()


class Graph:
    def __init__(self, actions):
        self.actions = actions

    def launch(self, stream=None):
        for action in self.actions:
            action()


def _zeros(shape, dtype):
    array = _empty(shape, dtype)
    _do(lambda: array.fill(0))
    return array


def _asarray(x, dtype=None):
    """A copy of what comes from the host."""
    here = isinstance(x, ndarray)
    return (np.asarray if here else np.array)(x, dtype).view(ndarray)


class Memory:
    def __init__(self, size):
        self.size = size


class MemoryPool:
    """Counts what it takes for arrays made within `using_allocator`; they are NumPy's anyway."""

    def __init__(self, allocator=None):
        self.malloc = allocator or Memory


@contextlib.contextmanager
def using_allocator(malloc):
    global _malloc
    before, _malloc = _malloc, malloc
    try:
        yield
    finally:
        _malloc = before


_malloc = Memory


def _empty(shape, dtype):
    array = _here(np.empty(shape, dtype))
    _malloc(array.nbytes)
    return array


class CompileException(Exception):
    pass


class RawModule:
    def __init__(self, code=None, *, options=(), backend="nvrtc"):
        assert options[0] == "--std=c++17" and backend == "nvrtc"
        self.code = code
        self.constants = dict(option[2:].split("=") for option in options[1:])

    def compile(self, log_stream=None):
        try:
            self.library = Library(self.code, self.constants, "kernel")
        except KernelError as error:
            raise CompileException(str(error)) from None

    def get_function(self, name):
        return RawKernel(self.library.kernel(name))


class RawKernel:
    preferred_shared_memory_carveout = -1
    max_dynamic_shared_size_bytes = 48 * 1024

    def __init__(self, kernel):
        self.kernel = kernel

    def __call__(self, grid, block, args, *, shared_mem=0):
        assert shared_mem <= self.max_dynamic_shared_size_bytes
        assert (self.preferred_shared_memory_carveout == 100) == (shared_mem > 0)
        values = [None if type(value) is np.uintp else value for value in args]
        _do(lambda: self.kernel.launch(grid, block, values, shared_mem))


def _floats(pointer, rows, columns):
    memory = (ctypes.c_float * (rows * columns)).from_address(pointer)
    return np.frombuffer(memory, np.float32).reshape(rows, columns)


def _matrix(pointer, n):
    return _floats(pointer, n, n)


math_modes = []  # that cuBLAS was set to, one after the other


def _gemm(handle, op_a, op_b, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc):
    """c = alpha op(a) op(b) + beta c in columns: in rows c^T = op(b)^T op(a)^T."""
    first = _floats(a, m, lda).T if op_a else _floats(a, k, lda)
    second = _floats(b, k, ldb).T if op_b else _floats(b, n, ldb)
    alpha, beta = (_floats(number, 1, 1) for number in (alpha, beta))
    result = _floats(c, n, ldc)
    result[...] = alpha * (second @ first) + (beta * result if beta else 0)


def _potrf(handle, uplo, n, matrix, lda, work, size, info):
    try:
        _matrix(matrix, n)[...] = np.linalg.cholesky(_matrix(matrix, n))
    except np.linalg.LinAlgError:
        ctypes.c_int.from_address(info).value = 1


def _potrs(handle, uplo, n, columns, factor, lda, right, ldb, info):
    lower = _matrix(factor, n)
    _matrix(right, n)[...] = np.linalg.solve(lower @ lower.T, _matrix(right, n))


CLASSES = {
    kind.__name__: kind
    for kind in (Device, Event, Graph, Memory, MemoryPool, RawKernel, RawModule, Stream, ndarray)
}


FLOAT32, SUM = 7, 0


def _nccl():
    """NCCL, where every process does the same: calls count from the end of their group on.

    `calls` are the groups: [(name, elements, ..., stream), ...] each.
    """
    module, group = ModuleType("cupy.cuda.nccl"), []

    def start():
        assert not group, "a group within a group"
        group.append([])

    def end():
        queued = group.pop()
        module.calls.append([call for call, _ in queued])
        for _, action in queued:
            _do(action)

    def memory(pointer, count):
        return np.frombuffer((ctypes.c_float * count).from_address(pointer), np.float32)

    class NcclCommunicator:
        def __init__(self, ndev, commId, rank):  # noqa: N803
            assert commId == b"an identifier"
            self.count, self.rank = ndev, rank
            module.communicators.append(self)

        def _queue(self, call, action):
            assert group, "a call outside of a group waits for its own end"
            group[-1].append((call, action))

        def allReduce(self, sendbuf, recvbuf, count, datatype, op, stream):  # noqa: N802
            assert sendbuf == recvbuf and (datatype, op) == (FLOAT32, SUM)
            array = memory(recvbuf, count)
            total = lambda: np.multiply(array, self.count, out=array)  # noqa: E731
            self._queue(("allReduce", count, stream), total)

        def broadcast(self, sendbuff, recvbuff, count, datatype, root, stream):
            assert sendbuff == recvbuff and datatype == FLOAT32
            self._queue(("broadcast", count, root, stream), lambda: None)

    vars(module).update(
        available=True,
        calls=[],
        communicators=[],
        NCCL_FLOAT32=FLOAT32,
        NCCL_SUM=SUM,
        NcclCommunicator=NcclCommunicator,
        get_unique_id=lambda: b"an identifier",
        groupStart=start,
        groupEnd=end,
    )
    return module


def modules():
    """{name: module} for sys.modules."""
    cupy, cuda, cupyx = map(ModuleType, ("cupy", "cupy.cuda", "cupyx"))
    solver_error = type("CUSOLVERError", (RuntimeError,), {})
    solver_error.__module__ = "cupy_backends.cuda.libs.cusolver"
    vars(cuda).update(
        is_available=lambda: True,
        Device=Device,
        Stream=Stream,
        get_current_stream=lambda: Stream._of_thread.entered[-1],
        Event=Event,
        MemoryPool=MemoryPool,
        using_allocator=using_allocator,
        get_elapsed_time=lambda start, end: 1000 * (end.time - start.time),
        memory=SimpleNamespace(
            OutOfMemoryError=MemoryError, Memory=Memory, MemoryPointer=lambda memory, offset: memory
        ),
        compiler=SimpleNamespace(CompileException=CompileException),
        runtime=SimpleNamespace(
            CUDARuntimeError=CUDARuntimeError,
            getDeviceCount=lambda: 1,
            getDeviceProperties=lambda device: {"name": b"a fake"},
            driverGetVersion=lambda: 13000,
            runtimeGetVersion=lambda: 13000,
        ),
        cublas=SimpleNamespace(
            CUBLAS_FILL_MODE_LOWER=0,
            CUBLAS_OP_N=0,
            CUBLAS_OP_T=1,
            CUBLAS_DEFAULT_MATH=0,
            setStream=lambda handle, stream: None,
            setMathMode=lambda handle, mode: math_modes.append(mode),
            sgemm=_gemm,
        ),
        cusolver=SimpleNamespace(
            spotrf_bufferSize=lambda *_: 1, spotrf=_potrf, spotrs=_potrs, CUSOLVERError=solver_error
        ),
        device=SimpleNamespace(get_cublas_handle=lambda: 0, get_cusolver_handle=lambda: 0),
        nccl=_nccl(),
    )
    vars(cupy).update(
        __version__="14.2.0",
        cuda=cuda,
        ndarray=ndarray,
        RawModule=RawModule,
        empty=_empty,
        zeros=_zeros,
        eye=lambda n, dtype: _here(np.eye(n, dtype=dtype)),
        asarray=_asarray,
        ascontiguousarray=_here,
        asnumpy=lambda a: np.array(a),
        isfinite=np.isfinite,
        array=lambda a, copy, order: np.array(a, copy=copy, order=order).view(ndarray),
        copyto=lambda target, source: _do(lambda: np.copyto(target, source)),
        linalg=SimpleNamespace(eigh=lambda a: tuple(map(_here, np.linalg.eigh(a)))),
        get_default_memory_pool=lambda: SimpleNamespace(
            used_bytes=lambda: 0, free_all_blocks=lambda: None
        ),
    )
    cupyx.errstate = lambda linalg: contextlib.nullcontext()
    return {"cupy": cupy, "cupy.cuda": cuda, "cupy.cuda.nccl": cuda.nccl, "cupyx": cupyx}
