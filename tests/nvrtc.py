"""Real compilation of the kernels by NVRTC, without a driver, and what the code then needs.

Of CUDA only libnvrtc is used, as the package nvidia-cuda-nvrtc brings it.
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
def library():
    """libnvrtc, or None where nvidia-cuda-nvrtc is not installed."""
    spec = find_spec("nvidia")
    for folder in spec.submodule_search_locations if spec else ():
        for path in sorted(Path(folder).glob("*/lib/libnvrtc.so.*")):
            return ctypes.CDLL(str(path))
    return None


def missing():
    """Why nothing can be compiled here, or None."""
    return None if library() else "NVRTC is not installed: pip install nvidia-cuda-nvrtc"


@cache
def version():
    major, minor = ctypes.c_int(), ctypes.c_int()
    library().nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return f"{major.value}.{minor.value}"


def _options(constants, architecture):
    return [
        "--std=c++17",
        f"--gpu-architecture={architecture}",
        "--ptxas-options=-v",
        *(f"-D{name}={value}" for name, value in sorted(constants.items())),
    ]


def cached(text, constants, architecture):
    """Where the resources of a text are kept, whether it has been compiled yet or not."""
    parts = [version(), *_options(constants, architecture), text]
    folder = Path(tempfile.gettempdir()) / f"kfcnet-nvrtc-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder / (hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32] + ".json")


def resources(text, constants, architecture):
    """{kernel: Resources} of a source text compiled for, say, "sm_90"; made once for a text."""
    path = cached(text, constants, architecture)
    if not path.exists():
        part = path.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps(_parse(_compile(text, _options(constants, architecture)))))
        os.replace(part, path)
    return {name: Resources(*numbers) for name, numbers in json.loads(path.read_text()).items()}


def _compile(text, options):
    """The log of a successful compilation."""
    nvrtc, program = library(), ctypes.c_void_p()
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), text.encode(), b"kernel.cu", 0, None, None)
    try:
        encoded = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        failed = nvrtc.nvrtcCompileProgram(program, len(options), encoded)
        size = ctypes.c_size_t()
        nvrtc.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        nvrtc.nvrtcGetProgramLog(program, log)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))
    if failed:
        raise CompileError(log.value.decode())
    return log.value.decode()


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
