"""CUDA C kernels on the CPU, for tests: g++ compiles the text that NVRTC compiles for a GPU."""

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import threading
from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from kfcnet.ops.cuda import kernels

HERE = Path(__file__).resolve().parent
COMPILER = os.environ.get("CXX", "g++")
COMMON = [
    "-std=c++17",
    "-fPIC",
    "-g1",
    "-ffp-contract=off",
    "-fno-strict-aliasing",
    "-fno-exceptions",
    "-Wall",
    f"-I{HERE}",
]
# Without the start files that the registering of destructors would need: see LINK_FLAGS.
CORE_FLAGS = [*COMMON, "-O2", "-fno-use-cxa-atexit"]
# The C and C++ libraries are those of the process: to look for them took most of a link's time.
LINK_FLAGS = ["-shared", "-nostdlib"]
# The instrumentation calls hooks of watch.cpp; the sanitizers' own libraries are not linked.
KERNEL_FLAGS = [
    *COMMON,
    "-O1",
    "-Wno-unused",
    "-Wno-sign-compare",
    "-Wno-unknown-pragmas",
    "-fsanitize=thread",
    "--param=tsan-instrument-func-entry-exit=0",
    "-fsanitize=bounds,alignment,integer-divide-by-zero,shift,signed-integer-overflow",
    "-fno-sanitize-recover=all",
]
_DYNAMIC_SHARED = re.compile(r"extern\s+__shared__\s+(?:__align__\(\d+\)\s+)?(\w+)\s+(\w+)\[\];")
_one_at_a_time = threading.RLock()  # the fibers of a block live in static memory
_stacks = (ctypes.c_void_p * 1024)()  # theirs; shared, as a process can only have so many mappings


class KernelError(RuntimeError):
    """A fault of a kernel: a race, an access outside an array, a divergent barrier, ..."""


def missing():
    """Why kernels cannot run here, or None."""
    return None if shutil.which(COMPILER) else f"{COMPILER} is not installed: the kernels need it"


class Library:
    """The kernels of one source text, compiled with {macro: value} ahead of it."""

    def __init__(self, text, constants, label):
        self.path = _compiled(text, tuple(sorted(constants.items())), label)
        _load_cpp_library()
        self._library = ctypes.CDLL(str(self.path))
        self._library.cudacpu_use_stacks(_stacks)
        self._library.cudacpu_message.restype = ctypes.c_char_p
        self._library.cudacpu_fault_offset.restype = ctypes.c_size_t
        self.signatures = kernels.parse(text, label)

    def kernel(self, name):
        """Raises KeyError for a kernel that the text does not have."""
        return Kernel(self, name, self.signatures[name])

    def fault(self):
        """What the latest launch did wrong, and on which line."""
        message = self._library.cudacpu_message().decode()
        offset = self._library.cudacpu_fault_offset()
        return f"{message}, at {self._lines([offset])[0]}" if offset else message

    def _lines(self, offsets):
        """file:line of places in the compiled code."""
        command = ["addr2line", "-e", str(self.path), *map(hex, offsets)]
        places = subprocess.run(command, capture_output=True, text=True).stdout.splitlines()
        return [place.split(" (")[0].rpartition("/")[2] for place in places] or ["an unknown line"]

    def sample(self, blocks):
        """Let the next launches run so many of their blocks and count; 0: run all, as usual."""
        self._library.cudacpu_sample(ctypes.c_uint(blocks))

    def traffic(self):
        """[Traffic] of the launches since `sample`, in the order of the code."""
        count = self._library.cudacpu_traffic(None, 0)
        found = (_Traffic * max(1, count))()
        self._library.cudacpu_traffic(found, count)
        lines = self._lines([one.offset for one in found[:count]])
        return [
            Traffic(line, bool(one.shared), bool(one.write), one.bytes, *one.counts)
            for one, line in zip(found[:count], lines, strict=True)
        ]


class Traffic(NamedTuple):
    """What the warps of a launch asked of memory at one place of the code.

    bytes: of a lane's request. taken: bank wavefronts of shared memory, sectors of 32 bytes of
    global memory; ideal: the fewest with which the same bytes could have come.
    """

    line: str
    is_shared: bool
    is_write: bool
    bytes: int
    requests: int
    taken: int
    ideal: int


class _Traffic(ctypes.Structure):
    _fields_ = [
        ("offset", ctypes.c_size_t),
        ("shared", ctypes.c_uint),
        ("write", ctypes.c_uint),
        ("bytes", ctypes.c_uint),
        ("counts", ctypes.c_ulonglong * 3),
    ]


class Kernel:
    """One kernel; `launch` has the arguments of a CUDA launch, over NumPy arrays and scalars."""

    def __init__(self, library, name, arguments):
        self.name, self.arguments, self._owner = name, arguments, library
        self._launch = getattr(library._library, f"cudacpu_launch_{name}")
        signature = getattr(library._library, f"cudacpu_signature_{name}")
        signature.restype = ctypes.c_char_p
        letters = signature().decode()
        self._passed, self._behind = letters[: len(letters) // 2], letters[len(letters) // 2 :]

    def launch(self, grid, block, values, shared=0, order=0):
        """Run the kernel. values: arrays (None for a null pointer) and NumPy scalars.

        order: of the threads between two barriers and of the blocks: 0 ascending, 1 descending,
        n > 1 threads shuffled with seed n. Raises KernelError for what the kernel does wrong,
        TypeError for an argument that it would misread.
        """
        if len(values) != len(self.arguments):
            raise TypeError(
                f"{self.name} takes {len(self.arguments)} arguments, {len(values)} given"
            )
        checked = [self._checked(i, value) for i, value in enumerate(values)]
        arrays = [
            _described(argument, value)
            for argument, value in zip(self.arguments, checked, strict=True)
            if isinstance(value, np.ndarray)
        ]
        holders = [_holder(value) for value in checked]
        pointers = (ctypes.c_void_p * max(1, len(holders)))(*map(ctypes.addressof, holders))
        dimensions = (ctypes.c_uint * 6)(*(*grid, 1, 1)[:3], *(*block, 1, 1)[:3])
        with _one_at_a_time:
            failed = self._launch(
                dimensions,
                ctypes.c_size_t(shared),
                ctypes.c_uint(order),
                pointers,
                (_Array * max(1, len(arrays)))(*arrays),
                len(arrays),
            )
            if failed:
                raise KernelError(f"{self.name}: {self._owner.fault()}")

    def traffic(self, grid, block, values, shared=0, blocks=4):
        """[Traffic] of a launch, counted over so many of its blocks; without the watch for races.

        The arrays are then only partly written. Raises as `launch`.
        """
        with _one_at_a_time:
            self._owner.sample(blocks)
            try:
                self.launch(grid, block, values, shared)
                return self._owner.traffic()
            finally:
                self._owner.sample(0)

    def _checked(self, index, value):
        """The value as the compiled kernel takes it; raises TypeError otherwise."""
        where = f"{self.name}: {self.arguments[index].name}"
        if self._passed[index] != "P":
            wanted = np.dtype(self._passed[index])
            if not isinstance(value, np.generic) or value.dtype != wanted:
                raise TypeError(f"{where}: a NumPy {wanted} is needed, {value!r} given")
            return value
        if value is None:
            return None
        wanted = np.dtype(self._behind[index])
        if not isinstance(value, np.ndarray) or value.dtype != wanted:
            given = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
            raise TypeError(f"{where}: an array of {wanted} is needed, {given} given")
        if not value.flags.c_contiguous:
            raise TypeError(f"{where}: the array is not C-contiguous")
        if not self.arguments[index].constant and not value.flags.writeable:
            raise TypeError(f"{where}: the array is read-only")
        return value


class _Array(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("base", ctypes.c_void_p),
        ("bytes", ctypes.c_size_t),
        ("element", ctypes.c_uint),
    ]


def _described(argument, array):
    return _Array(argument.name.encode(), array.ctypes.data, array.nbytes, array.itemsize)


def _holder(value):
    if value is None or isinstance(value, np.ndarray):
        return ctypes.c_void_p(None if value is None else value.ctypes.data)
    return ctypes.create_string_buffer(value.tobytes())


# Compilation, cached by everything that goes into it


def _folder():
    folder = Path(tempfile.gettempdir()) / f"kfcnet-cuda-on-cpu-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _built(name, key, *arguments):
    """The file that the compiler makes from `arguments`, made at most once for a key."""
    digest = hashlib.sha256("\0".join([COMPILER, *key]).encode()).hexdigest()[:24]
    target = _folder() / f"{digest}-{name}"
    target.parent.mkdir(exist_ok=True)
    if not target.exists():
        # Into a name of its own first: another process may be making the same file.
        part = target.with_name(f"{os.getpid()}-{threading.get_ident()}-{target.name}")
        done = subprocess.run(
            [COMPILER, *map(str, arguments), "-o", str(part)], capture_output=True, text=True
        )
        if done.returncode:
            raise KernelError(f"{COMPILER} cannot compile {name}:\n{done.stderr}")
        os.replace(part, target)
    return target


@cache
def _headers():
    return "".join((HERE / name).read_text() for name in ("core.h", "cuda_cpu.h", "machine.h"))


@cache
def _core():
    """Object files of the harness itself."""
    sources = [HERE / name for name in ("fibers.cpp", "watch.cpp", "traffic.cpp")]
    return [
        _built(
            f"{source.stem}.o",
            [*CORE_FLAGS, source.read_text(), _headers()],
            *CORE_FLAGS,
            "-c",
            source,
        )
        for source in sources
    ]


@cache
def _precompiled_header():
    """The folder of `cuda_cpu.h` as g++ has read it, which is two fifths of a kernel's compilation.

    Another compiler passes it by and reads the text.
    """
    arguments = *KERNEL_FLAGS, "-x", "c++-header", HERE / "cuda_cpu.h"
    return _built("header/cuda_cpu.h.gch", [*KERNEL_FLAGS, _headers()], *arguments).parent


@cache
def _compiled(text, constants, label):
    """The shared library of a source text with its constants."""
    body = _DYNAMIC_SHARED.sub(r"\1* const \2 = static_cast<\1*>(cudacpu::dynamic_shared());", text)
    unit = "\n".join(
        [
            '#include "cuda_cpu.h"',
            *(f"#define {name} {value}" for name, value in constants),
            "namespace {",  # internal linkage: else shared variables of inline functions clash
            body,
            "}",
            *(f"CUDACPU_EXPORT({name})" for name in kernels.parse(text, label)),
            "",
        ]
    )
    key = [*KERNEL_FLAGS, unit, _headers()]
    unit_file = _folder() / f"{os.getpid()}-{threading.get_ident()}-{label}.cpp"
    unit_file.write_text(unit)
    try:
        header = f"-I{_precompiled_header()}"  # ahead of the folder with its text
        compiled = _built(f"{label}.o", key, header, *KERNEL_FLAGS, "-c", unit_file)
    finally:
        unit_file.unlink()
    arguments = [*LINK_FLAGS, compiled, *_core()]
    return _built(f"{label}.so", [str(one) for one in arguments], *arguments)


@cache
def _load_cpp_library():
    """Let the kernels' libraries find it."""
    ctypes.CDLL("libstdc++.so.6", mode=ctypes.RTLD_GLOBAL)
