"""Real compilation of the kernels by NVRTC, without a driver, and what the code then needs.

Of CUDA only libnvrtc is used. The extra `test` brings the newest and the oldest one that the extras
`cuda13` and `cuda12` admit, in the packages nvidia-cuda-nvrtc and nvidia-cuda-nvrtc-cu12.
"""

import ctypes
import hashlib
import json
import os
import re
import tempfile
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

_ENTRY = re.compile(r"Compiling entry function '(\w+)'")
_SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
_USED = re.compile(r"Used (\d+) registers")
_SHARED = re.compile(r"(\d+) bytes smem")


class CompileError(RuntimeError):
    """NVRTC refuses a source; the message is its log."""


class Resources(NamedTuple):
    """What a compiled kernel needs: registers of a thread, bytes of a block, bytes of a thread."""

    registers: int
    static_shared: int
    stack: int
    spilled: int


@cache
def libraries():
    """{(major, minor): libnvrtc} of what is installed, from the oldest on."""
    spec, found = find_spec("nvidia"), {}
    for folder in spec.submodule_search_locations if spec else ():
        for path in Path(folder).glob("*/lib/libnvrtc.so.*"):
            library, numbers = ctypes.CDLL(str(path)), (ctypes.c_int(), ctypes.c_int())
            library.nvrtcVersion(*map(ctypes.byref, numbers))
            found[tuple(number.value for number in numbers)] = library
    return dict(sorted(found.items()))


def missing():
    """Why nothing can be compiled here, or None."""
    return None if libraries() else "NVRTC is not installed: pip install nvidia-cuda-nvrtc"


def newest():
    """(major, minor) of the newest that is installed."""
    return list(libraries())[-1]


def architectures(version):
    """{"sm_75", ...}: those that a version of NVRTC compiles for."""
    nvrtc, count = libraries()[version], ctypes.c_int()
    nvrtc.nvrtcGetNumSupportedArchs(ctypes.byref(count))
    numbers = (ctypes.c_int * count.value)()
    nvrtc.nvrtcGetSupportedArchs(numbers)
    return {f"sm_{number}" for number in numbers}


def options(constants, architecture):
    """Those with which CuPy compiles, and one that makes the log say what the code needs."""
    return [
        "--std=c++17",
        *(f"-D{name}={value}" for name, value in sorted(constants.items())),
        "-ftz=true",
        f"-arch={architecture}",
        "--device-as-default-execution-space",
        "--ptxas-options=-v",
    ]


def cached(text, constants, architecture, version=None):
    """Where the resources of a text are kept, whether it has been compiled yet or not."""
    parts = [str(version or newest()), *options(constants, architecture), text]
    folder = Path(tempfile.gettempdir()) / f"kfcnet-nvrtc-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder / (hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32] + ".json")


def resources(text, constants, architecture, version=None):
    """{kernel: Resources} of a source text compiled for, say, "sm_90"; made once for a text.

    The machine code lies beside: `code`.
    """
    path = cached(text, constants, architecture, version)
    if not path.exists():
        given = options(constants, architecture)
        log, machine_code = _compile(text, given, version or newest())
        _write(path.with_suffix(".cubin"), machine_code)
        _write(path, json.dumps(_parse(log)).encode())
    return {name: Resources(*numbers) for name, numbers in json.loads(path.read_text()).items()}


def code(text, constants, architecture, version=None):
    """The file with the machine code of a source text."""
    resources(text, constants, architecture, version)
    return cached(text, constants, architecture, version).with_suffix(".cubin")


def _write(path, contents):
    """At once, as another process may be writing the same file."""
    part = path.with_suffix(f".{os.getpid()}")
    part.write_bytes(contents)
    os.replace(part, path)


def _compile(text, given, version):
    """(log, machine code) of a successful compilation."""
    nvrtc, program = libraries()[version], ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernel.cu", 0, None, None)
    try:
        encoded = (ctypes.c_char_p * len(given))(*(option.encode() for option in given))
        failed = nvrtc.nvrtcCompileProgram(program, len(given), encoded)
        size = ctypes.c_size_t()
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, log)
        nvrtc.nvrtcGetCUBINSize(program, ctypes.byref(size))
        machine_code = ctypes.create_string_buffer(0 if failed else size.value)
        if not failed:
            nvrtc.nvrtcGetCUBIN(program, machine_code)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    if failed:
        raise CompileError(log.value.decode())
    return log.value.decode(), machine_code.raw


def _parse(log):
    found = {}
    _, *parts = _ENTRY.split(log)  # name, text, name, text, ...
    for name, text in zip(parts[::2], parts[1::2], strict=True):
        stack, stores, loads = map(int, _SPILLS.search(text).groups())
        shared = _SHARED.search(text)
        found[name] = (
            int(_USED.search(text)[1]),
            int(shared[1]) if shared else 0,
            stack,
            stores + loads,
        )
    return found
