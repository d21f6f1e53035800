"""The GPU through CuPy: arrays, compilation, launches, streams, graphs. Only this file imports it.

A runtime is what the launchers of `kfcnet/ops/cuda/` need; the tests have another one. Work is
queued in order on one stream; reading an array waits for it.
"""

import contextlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np

from kfcnet.ops.cuda import kernels
from kfcnet.ops.errors import DeviceError
from kfcnet.ranks import Alone, machine, of_all

OLDEST = 75  # compute capability 7.5
TENSOR_CORES_FROM = 80  # TF32, and 99 KB of shared memory at least
MOST_BLOCKS = 65535  # of a grid in its second and third direction
STATIC_SHARED = 48 * 1024  # bytes of shared memory that a kernel has without asking for more
ALL = 100  # percent
TF32_MATH = 3  # cuBLAS's CUBLAS_TF32_TENSOR_OP_MATH, a name that CuPy lacks


INSTALL = (
    "pip install -e '.[cuda13]' in the checkout of kfcnet brings it, or '.[cuda12]' for a driver "
    "before CUDA 13"
)
INSTALL_NCCL = (
    "pip install -e '.[nccl13]' in the checkout of kfcnet brings it, or '.[nccl12]' for cuda12"
)
NCCL_SETTINGS = {"NCCL_NVLS_ENABLE": "0", "NCCL_GRAPH_REGISTER": "0"}
"""Sums in switches are not the same bits from run to run; buffers of graphs outlive their use."""
BUSY = (
    "nvidia-smi shows whether another program keeps the GPU to itself, and the driver, which may "
    "not be older than CuPy's CUDA; otherwise use the device cpu"
)


def _is_of_cuda(error):
    """Whether CuPy or a library of CUDA raised it. What they cannot load is a plain error."""
    package = type(error).__module__.partition(".")[0]
    return package in ("cupy", "cupy_backends", "cuda") or type(error) in (RuntimeError, OSError)


def _in_one_line(error):
    return " ".join(str(error).split())


@cache
def _cupy():
    """CuPy, where there is a GPU for it. Raises DeviceError with the way out."""
    try:
        import cupy
    except (ImportError, OSError, RuntimeError) as error:
        cause = _in_one_line(error.__cause__ or error)  # CuPy's own text is a page
        raise DeviceError(
            f"the GPU is used through CuPy, which cannot be imported ({cause}): {INSTALL}"
        ) from None
    try:
        found, reason = cupy.cuda.is_available(), ""
    except (RuntimeError, OSError) as error:  # CuPy 13 without a driver
        found, reason = False, f" ({_in_one_line(error)})"
    if not found:
        raise DeviceError(
            f"CuPy {cupy.__version__} finds no NVIDIA GPU or no driver that it can "
            f"use{reason}: nvidia-smi shows both; otherwise use the device cpu"
        )
    return cupy


@cache
def _libraries():
    """CuPy's (cublas, cusolver, device). Raises DeviceError where CUDA's libraries are missing."""
    try:
        from cupy.cuda import cublas, cusolver, device
    except (ImportError, OSError, RuntimeError) as error:
        raise DeviceError(
            "matrices are factorized by cuSOLVER, which CuPy cannot load "
            f"({_in_one_line(error)}): {INSTALL}"
        ) from None
    return cublas, cusolver, device


@cache
def _streams(device, thread):
    """(main, side, fetching) on a GPU: the same for all that a thread makes, so that whatever that
    queues comes in order. What another thread queued would be taken into a capture of this one.

    A capture takes the side stream in; what is copied meanwhile needs one of its own.
    """
    return tuple(_cupy().cuda.Stream(non_blocking=True) for _ in range(3))


_left_on = {}
"""{(device, thread): the main stream that a runtime has left the thread on}."""


def _nccl():
    """CuPy's NCCL. Raises DeviceError where its library is missing."""
    try:
        from cupy.cuda import nccl
    except (ImportError, OSError, RuntimeError) as error:
        raise DeviceError(
            f"processes add up through NCCL, which CuPy cannot load ({_in_one_line(error)}): "
            f"{INSTALL_NCCL}"
        ) from None
    if not nccl.available:
        raise DeviceError(
            f"processes add up through NCCL, which CuPy does not find: {INSTALL_NCCL}"
        )
    return nccl


def is_available():
    """Whether CuPy is installed and sees a GPU."""
    try:
        return bool(_cupy())
    except DeviceError:
        return False


class CapturedStepError(RuntimeError):
    """A captured step asks for what its graph could not repeat."""


class CupyRuntime:
    """Arrays and launches on the current GPU of CuPy."""

    def __init__(self, ranks=None):
        """ranks: the processes that share a mini-batch; each takes a GPU of its own.

        Raises DeviceError where there is no CuPy, no GPU, too old a one, or one that is busy, and
        where CuPy cannot compile for it; on all where one of them finds that.
        """
        ranks = ranks or Alone()
        self._cupy = ranks.agreed(_cupy)
        self._modules, self._kernels, self._launched, self.capturing = {}, {}, {}, False
        self._pools = []  # of each the memory that it has taken
        self._is_forked, self._capture_events = False, []  # a branch is open; those of a capture
        self._nccl = self._communicator = None  # where several processes share a mini-batch
        self.name, self.array_type = "the GPU", self._cupy.ndarray
        if ranks.count > 1:
            self._take_own_gpu(ranks)
        ranks.agreed(self._open)

    def _take_own_gpu(self, ranks):
        """Use the GPU that is this process's among those of its machine.

        Raises DeviceError on all where two have the same.
        """
        machines = ranks.allgather(machine())
        index = machines[: ranks.rank].count(machine())
        places = ranks.allgather(ranks.agreed(lambda: self._use(index)))
        for number, place in enumerate(places):
            if place in places[:number]:
                first = places.index(place)
                raise of_all(
                    DeviceError(
                        f"processes {first + 1} and {number + 1} of {ranks.count} have the same "
                        "GPU: start one process for each GPU of a machine"
                    )
                )

    def _use(self, index):
        """(machine, PCI address) of a GPU by its number, which is the current one from now on."""
        cupy = self._cupy
        with self._errors():
            cupy.cuda.Device(index % cupy.cuda.runtime.getDeviceCount()).use()
            return machine(), cupy.cuda.Device().pci_bus_id

    def _open(self):
        """Find out what the current GPU is, and whether it can be used. Raises DeviceError."""
        cupy = self._cupy
        with self._errors():
            self.device = cupy.cuda.Device()
            self.name = cupy.cuda.runtime.getDeviceProperties(self.device.id)["name"].decode()
            self.capability = int(self.device.compute_capability)
        if self.capability < OLDEST:
            raise DeviceError(
                f"{self.name} has compute capability {self.capability / 10}; the "
                f"kernels need {OLDEST / 10}: use another GPU or the device cpu"
            )
        self.tensor_cores = self.capability >= TENSOR_CORES_FROM
        self.shared_limit = (99 if self.tensor_cores else 48) * 1024
        with self._errors():
            streams = _streams(*self._place())
        self._stream, self._side, self._fetching = streams
        self._current = self._stream  # that launches and allocations go to
        with self._using():
            self._kernel("training_state", "advance_step", ())  # better here than in a run

    def describe(self):
        runtime = self._cupy.cuda.runtime
        with self._errors():
            driver, toolkit = runtime.driverGetVersion(), runtime.runtimeGetVersion()
        return {
            "device": "cuda",
            "processor": self.name,
            "compute_capability": f"{self.capability / 10}",
            "cupy": self._cupy.__version__,
            "cuda_driver": driver,
            "cuda_runtime": toolkit,
            "numpy": np.__version__,
        }

    # Arrays

    @contextlib.contextmanager
    def _errors(self):
        """Errors of CUDA and CuPy as DeviceErrors that name what may have caused them."""
        cupy = self._cupy
        try:
            yield
        except cupy.cuda.memory.OutOfMemoryError as error:
            raise DeviceError(
                f"{self.name} is out of memory: {error}. A smaller optimizer.batch_size needs less"
            ) from None
        except Exception as error:
            if not _is_of_cuda(error):
                raise
            hint = BUSY
            if self._launched:
                hint = (
                    f"Kernels since the host last waited: {', '.join(self._launched)}. With "
                    "CUDA_LAUNCH_BLOCKING=1 the last one is the cause"
                )
                if self._nccl:
                    hint += ", in one process: several may hang with it"
            raise DeviceError(f"{self.name}: {_in_one_line(error)}. {hint}") from None

    @contextlib.contextmanager
    def _using(self):
        """Within the context CuPy works on this GPU and on the stream of what is being queued.

        Both are the thread's own and not for long: another thread begins with the null stream.
        Where the caller has a stream of his own open, either waits for the other.
        """
        with self._errors(), self.device:
            before = self._cupy.cuda.get_current_stream()
            is_ours = self.capturing or before is self._stream or before is self._side
            is_foreign = not is_ours and self._is_foreign(before)
            if is_foreign:
                self._current.wait_event(before.record())
            with self._current:
                yield
            if is_foreign:
                before.wait_event(self._current.record())
            elif not is_ours:
                self._stay(before)

    def _is_foreign(self, stream):
        """Whether a thread's current stream, which is none of this runtime's, is the caller's."""
        defaults = self._cupy.cuda.Stream.null, self._cupy.cuda.Stream.ptds
        return stream not in (_left_on.get(self._place()), *defaults)

    def _stay(self, before):
        """Leave the thread on the main stream: the null stream does not wait for it, so that
        arithmetic on arrays there would not come after the kernels that made them.
        """
        if before is _left_on.get(self._place()):  # by a runtime of another thread
            before.__exit__()
        self._stream.__enter__()  # for good: whoever's `with stream` ends comes back to it
        _left_on[self._place()] = self._stream

    def _place(self):
        return self.device.id, threading.get_ident()

    def empty(self, shape, dtype):
        with self._using():
            return self._cupy.empty(shape, dtype)

    def zeros(self, shape, dtype):
        with self._using():
            return self._cupy.zeros(shape, dtype)

    def asarray(self, x, dtype):
        """An array of the host or of the device as a C-contiguous one here, of this dtype."""
        self._refuse_in_capture("data from the host")
        with self._using():
            return self._cupy.ascontiguousarray(self._cupy.asarray(x, dtype))

    def to_numpy(self, array):
        """Waits for everything queued before."""
        self._refuse_in_capture("an array to the host")
        with self._using():
            result = self._cupy.asnumpy(array)
        self._launched.clear()
        return result

    def copy(self, array):
        with self._using():
            return self._cupy.array(array, copy=True, order="C")

    def copy_into(self, target, source):
        """The elements of `source` into the memory of `target`, of the same shape and dtype."""
        with self._using():
            self._cupy.copyto(target, source)

    def allocated(self):
        """Bytes of arrays that are in use, with all that captured steps have taken."""
        captured = sum(block.size for pool in self._pools for block in pool)
        with self._using():
            return self._cupy.get_default_memory_pool().used_bytes() + captured

    def synchronize(self):
        self._refuse_in_capture("the host along")
        with self._using():
            self._stream.synchronize()
        self._launched.clear()

    def _refuse_in_capture(self, what):
        if self.capturing:
            raise CapturedStepError(f"a captured step cannot move {what}: it would not be repeated")

    # Kernels

    def launch(self, file, kernel, constants, grid, block, values, shared):
        """Queue a launch; `values` are checked and cast. Raises DeviceError, ValueError."""
        for value in values:
            if isinstance(value, self.array_type) and value.device != self.device:
                raise ValueError(
                    f"{kernel}: an array lies on GPU {value.device.id}, the kernel "
                    f"runs on GPU {self.device.id}"
                )
        if max(grid[1:], default=0) > MOST_BLOCKS:
            size = " x ".join(map(str, grid))
            raise ValueError(
                f"{kernel}: a grid of {size} blocks, a GPU takes {MOST_BLOCKS} from "
                "the second number on: use a smaller batch"
            )
        passed = tuple(np.uintp(0) if value is None else value for value in values)
        with self._using():
            function = self._kernel(file, kernel, tuple(sorted(constants.items())), shared)
            if shared > STATIC_SHARED:
                function.max_dynamic_shared_size_bytes = shared
            self._launched[kernel] = None
            function(grid, block, passed, shared_mem=shared)

    def _kernel(self, file, kernel, constants, shared=0):
        key = file, kernel, constants
        if key not in self._kernels:
            if (file, constants) not in self._modules:
                self._modules[file, constants] = self._compiled(file, constants)
            module = self._modules[file, constants]
            function = self._kernels[key] = module.get_function(kernel)
            if shared:  # of the memory that L1 and tiles share, tiles get all, for several blocks
                function.preferred_shared_memory_carveout = ALL
        return self._kernels[key]

    def _compiled(self, file, constants):
        options = ("--std=c++17", *(f"-D{name}={value}" for name, value in constants))
        module = self._cupy.RawModule(code=kernels.source(file), options=options, backend="nvrtc")
        try:
            module.compile()
        except self._cupy.cuda.compiler.CompileException as error:
            raise DeviceError(
                f"kernels/{file}.cu does not compile for sm_{self.capability} with "
                f"{' '.join(options)}:\n{error}"
            ) from None
        return module

    # Other processes' GPUs

    def join(self, ranks):
        """Let `sum_over_ranks` and `broadcast_over_ranks` reach the GPUs of these processes.

        All of them call it. Raises DeviceError where NCCL is missing or does not find them.
        """

        def identifier():
            with self._using():
                return nccl.get_unique_id()

        for name, value in NCCL_SETTINGS.items():
            os.environ.setdefault(name, value)
        self._nccl = nccl = ranks.agreed(_nccl)
        shared = ranks.of_first_process(identifier)
        with self._using():
            self._communicator = nccl.NcclCommunicator(ranks.count, shared, ranks.rank)

    @contextlib.contextmanager
    def _group(self):
        """Within the context calls of NCCL are gathered into one."""
        with self._using():
            self._nccl.groupStart()
            try:
                yield
            finally:
                self._nccl.groupEnd()

    def sum_over_ranks(self, arrays):
        """Queue array <- its sum over the processes, for each float32 array, on the main stream."""
        nccl = self._nccl
        with self._group():
            for array in arrays:
                pointer, stream = array.data.ptr, self._stream.ptr
                self._communicator.allReduce(
                    pointer, pointer, array.size, nccl.NCCL_FLOAT32, nccl.NCCL_SUM, stream
                )

    def broadcast_over_ranks(self, owner, arrays):
        """Queue array <- its value on the process `owner`, likewise."""
        nccl = self._nccl
        with self._group():
            for array in arrays:
                pointer, stream = array.data.ptr, self._stream.ptr
                self._communicator.broadcast(
                    pointer, pointer, array.size, nccl.NCCL_FLOAT32, owner, stream
                )

    def compile(self, wanted, shown=lambda done, count: None):
        """Compile [(file, constants as sorted pairs)], several at a time; shown(done, count) after
        each. CuPy keeps the code on the disk for later processes.
        """
        wanted = [one for one in wanted if one not in self._modules]

        def compiled(one):
            with self._errors(), self.device:  # each thread has a current device of its own
                return self._compiled(*one)

        with ThreadPoolExecutor(os.cpu_count()) as threads:
            for done, (one, module) in enumerate(
                zip(wanted, threads.map(compiled, wanted), strict=True), 1
            ):
                self._modules[one] = module
                shown(done, len(wanted))

    # Graphs and the second stream

    def new_pool(self):
        """Memory of its own for captured steps: a replay finds its buffers as they were.

        CuPy gives free blocks back to the device when memory is short; those that a graph writes to
        count as free between its launches, so that they are held here. Those of CuPy's own pool it
        does not give back for this one.
        """
        memory, held = self._cupy.cuda.memory, []
        self._pools.append(held)

        def take(size):
            try:
                held.append(memory.Memory(size))
            except Exception as error:
                if self.capturing or not _is_of_cuda(error):  # a capture cannot free memory
                    raise
                self._cupy.get_default_memory_pool().free_all_blocks()
                held.append(memory.Memory(size))
            return memory.MemoryPointer(held[-1], 0)

        return self._cupy.cuda.MemoryPool(take)

    @contextlib.contextmanager
    def allocating_from(self, pool):
        """Within the context new arrays come from `pool`, CuPy's own temporaries too."""
        with self._cupy.cuda.using_allocator(pool.malloc):
            yield

    def capture(self, function):
        """(graph, result): a function's launches, recorded and not run, and what it returned."""
        try:
            with self._using():
                self._stream.begin_capture()
                self.capturing = True
                result = function()
                self.join_branch()  # what is still beside
                return self._stream.end_capture(), result
        except BaseException:
            with contextlib.suppress(Exception):  # of the capture that is cut short
                self._stream.end_capture()
            raise
        finally:
            self.capturing = self._is_forked = False
            self._capture_events.clear()

    @contextlib.contextmanager
    def beside(self):
        """Within the context, in a capture: a branch of the graph, from here to `join_branch`.

        A capture takes in the second stream where that waits for an event of the first, and must
        find it joined in the same way at its end.
        """
        if not self.capturing:
            yield
            return
        with self._using():
            self._follow(self._side, self._stream)
        self._is_forked, self._current = True, self._side
        try:
            with self._side:  # arithmetic on arrays, too
                yield
        finally:
            self._current = self._stream

    def join_branch(self):
        if self._is_forked:
            self._is_forked = False
            with self._using():
                self._follow(self._stream, self._side)

    def _follow(self, later, earlier):
        """Let what is queued on one stream from here on come after what is queued on another."""
        event = earlier.record()
        later.wait_event(event)
        self._capture_events.append(event)

    def replay(self, graph):
        with self._using():
            graph.launch(self._stream)

    def on_side_stream(self, function):
        """Queue a function's work on the second stream, after all that is queued on the first.

        Returns (result, event); work that uses the result comes after `wait(event)`.
        """
        self._refuse_in_capture("work to the second stream")
        with self._using():
            self._side.wait_event(self._stream.record())
            self._current = self._side
            try:
                with self._side:  # arithmetic on arrays, too
                    result = function()
            finally:
                self._current = self._stream
            return result, self._side.record()

    def wait(self, event):
        """Let what is queued from here on come after an event; the host does not wait."""
        with self._using():
            self._stream.wait_event(event)

    def to_host_later(self, arrays):
        """A function for another thread: it waits until the arrays are as they are now queued."""
        with self._using():
            event = self._stream.record()

        def fetch():
            with self._errors(), self.device, self._fetching:
                event.synchronize()
                return [self._cupy.asnumpy(array) for array in arrays]

        return fetch

    # Measuring

    def event(self):
        """A moment on the device: when it has done what is queued so far."""
        with self._using():
            event = self._cupy.cuda.Event()
            event.record(self._stream)
            return event

    def seconds_between(self, start, end):
        """After `synchronize`."""
        with self._using():
            return self._cupy.cuda.get_elapsed_time(start, end) / 1000

    def library_product(self, a, b, out, tensor_cores, transpose_a=False):
        """out = op(a) b by cuBLAS: what kernels are measured against."""
        cublas, _, device = _libraries()
        (m, n), k = out.shape, len(b)
        with self._using():
            handle = device.get_cublas_handle()
            one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
            cublas.setStream(handle, self._stream.ptr)
            cublas.setMathMode(handle, TF32_MATH if tensor_cores else cublas.CUBLAS_DEFAULT_MATH)
            # In columns, as the library sees the same memory: out^T = b^T op(a)^T.
            cublas.sgemm(
                handle,
                cublas.CUBLAS_OP_N,
                cublas.CUBLAS_OP_T if transpose_a else cublas.CUBLAS_OP_N,
                n,
                m,
                k,
                one.ctypes.data,
                b.data.ptr,
                n,
                a.data.ptr,
                m if transpose_a else k,
                zero.ctypes.data,
                out.data.ptr,
                n,
            )
            cublas.setMathMode(handle, cublas.CUBLAS_DEFAULT_MATH)

    # Factorization

    def spd_inverse(self, matrix, shift):
        """(matrix + shift*I)^-1 by Cholesky, and an int32 (1,) that is 0 where it succeeded."""
        self._refuse_in_capture("a factorization")
        cupy = self._cupy
        cublas, cusolver, device = _libraries()
        n, lower = len(matrix), cublas.CUBLAS_FILL_MODE_LOWER
        with self._using():
            handle = device.get_cusolver_handle()
            factor, inverse = matrix.copy(), cupy.eye(n, dtype=matrix.dtype)
            factor.ravel()[:: n + 1] += shift
            info = cupy.zeros(2, np.int32)
            work = cupy.empty(
                cusolver.spotrf_bufferSize(handle, lower, n, factor.data.ptr, n), matrix.dtype
            )
            cusolver.spotrf(
                handle, lower, n, factor.data.ptr, n, work.data.ptr, work.size, info.data.ptr
            )
            cusolver.spotrs(
                handle, lower, n, n, factor.data.ptr, n, inverse.data.ptr, n, info[1:].data.ptr
            )
            inverse = (inverse + inverse.T) / 2  # rounding leaves it a little asymmetric
            failed = (info != 0).any() | ~cupy.isfinite(inverse).all()
            return inverse, failed.astype(np.int32).reshape(1)

    def eigh(self, matrix):
        """(values from the smallest on, vectors in columns); waits for the device.

        Raises np.linalg.LinAlgError where the iteration does not converge.
        """
        self._refuse_in_capture("a factorization")
        import cupyx

        failed = np.linalg.LinAlgError("eigenvalues did not converge")
        with self._using(), cupyx.errstate(linalg="raise"):  # else CuPy does not look
            if not bool(self._cupy.isfinite(matrix).all()):
                raise failed  # no library promises to come back from these
            try:
                values, vectors = self._cupy.linalg.eigh(matrix)
            except np.linalg.LinAlgError:
                raise failed from None
            return values, self._cupy.ascontiguousarray(vectors)
