"""The sources of the CUDA kernels, and what their signatures say about the arguments.

A signature in `kernels/*.cu` is the contract of its launcher: one argument a line, and behind each
pointer the shape of the array in terms of the compile-time constants and the kernel's own integers:

    const float* x,  // aligned (M, HEIGHT, WIDTH, MAPS)

`aligned` where the kernel moves neighbours of the last dimension at once, as many as divide it of
one, two and four: the array must begin at a multiple of their bytes. Others may begin anywhere.
"""

import math
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

_PACKAGE = Path(__file__).resolve().parents[2]
_INCLUDE = re.compile(r'^#include "(\w+\.cuh)"[^\n]*$', re.MULTILINE)
_KERNEL = re.compile(r'extern "C" __global__ void\s+(?:__launch_bounds__\([^\n]*?\)\s+)?(\w+)\(')
_ARGUMENT = re.compile(r"(?:const )?((?:unsigned |long )*\w+)(\*?) (?:__restrict__ )?(\w+)$")
_SHAPE = re.compile(r"(or null: *)?(aligned )?\(([^:]*)\)")
_MOST = 2**31 - 1  # elements of an array: kernels calculate places in int
_TYPES = {
    "float": np.float32,
    "double": np.float64,
    "int": np.int32,
    "unsigned": np.uint32,
    "unsigned int": np.uint32,
    "unsigned char": np.uint8,
    "long long": np.int64,
    "unsigned long long": np.uint64,
}


@dataclass(frozen=True)
class Argument:
    """One argument of a kernel. shape: the code of its shape's tuple, None for a scalar."""

    name: str
    dtype: np.dtype
    constant: bool
    shape: object = None
    optional: bool = False
    aligned: bool = False

    def sides(self, names):
        """The shape that the kernel expects, with the values of the names in `shape`."""
        return eval(self.shape, {"__builtins__": {}}, names)  # our own source, not input

    def boundary(self, sides):
        """The bytes at a multiple of which an array of these sides must begin."""
        return self.dtype.itemsize * (math.gcd(4, sides[-1]) if self.aligned else 1)


def folder():
    """kernels/ beside the package in a checkout, inside it where it is installed."""
    installed = _PACKAGE / "kernels"
    return installed if installed.is_dir() else _PACKAGE.parent / "kernels"


@cache
def source(file):
    """The text of kernels/<file>.cu, complete; raises FileNotFoundError."""
    return splice(folder() / f"{file}.cu")


def splice(path):
    """The text of a .cu file with the .cuh files it includes spliced in, each once.

    Includes are sought beside the file, then in kernels/. So one text is all that a compiler needs
    and all that a cache has to hash; #line markers keep messages pointing at the files.
    """
    return _spliced(path, set())


def _spliced(path, seen):
    text = path.read_text(encoding="utf-8").replace("#pragma once\n", "\n")
    parts, end = [f'#line 1 "{path.name}"\n'], 0
    for match in _INCLUDE.finditer(text):
        parts.append(text[end : match.start()])
        if match[1] not in seen:
            seen.add(match[1])
            beside = path.with_name(match[1])
            parts.append(_spliced(beside if beside.is_file() else folder() / match[1], seen))
        end = match.end()
        parts.append(f'\n#line {text.count(chr(10), 0, end) + 1} "{path.name}"')
    return "".join(parts) + text[end:]


@cache
def signatures(file):
    """{kernel: (Argument, ...)} of kernels/<file>.cu; raises as `parse` does."""
    return parse(source(file), f"{file}.cu")


def parse(text, where):
    """{kernel: (Argument, ...)} of a source text.

    Raises ValueError for an argument that is not written as the module's docstring says.
    """
    found = {}
    for match in _KERNEL.finditer(text):
        end = text.index("\n", text.index("{", match.end()))
        split = [line.partition("//") for line in text[match.end() : end].splitlines()]
        arguments = [(code.strip(" ,(){"), note.strip()) for code, _, note in split]
        found[match[1]] = tuple(
            _argument(code, note, f"{where}: {match[1]}") for code, note in arguments if code
        )
    return found


def _argument(declaration, comment, where):
    match = _ARGUMENT.match(declaration)
    if not match or match[1].strip() not in _TYPES:
        raise ValueError(f"{where}: argument {declaration!r} is not one `type name` on its line")
    dtype, constant = np.dtype(_TYPES[match[1].strip()]), declaration.startswith("const ")
    if not match[2]:
        return Argument(match[3], dtype, True)
    shape = _SHAPE.match(comment)
    if not shape:
        raise ValueError(f"{where}: pointer {match[3]} lacks its shape, as in // (M, MAPS)")
    code = compile(f"({shape[3]},)" if shape[3] else "()", where, "eval")
    return Argument(match[3], dtype, constant, code, bool(shape[1]), bool(shape[2]))


def checked(kernel, arguments, values, constants, array_type):
    """The values as a launch of the kernel takes them: arrays as they are, numbers cast.

    A GPU takes pointers on trust; this is the place where an argument that the kernel would misread
    is found. Raises TypeError and ValueError naming kernel and argument, and OverflowError for a
    number that the kernel's type does not hold.
    """
    if len(values) != len(arguments):
        raise TypeError(f"{kernel} takes {len(arguments)} arguments, {len(values)} given")
    pairs = list(zip(arguments, values, strict=True))
    numbers = {a.name: _number(f"{kernel}: {a.name}", a, v) for a, v in pairs if a.shape is None}
    names = constants | {name: number.item() for name, number in numbers.items()}
    for argument, value in pairs:
        if argument.shape is not None and not (argument.optional and value is None):
            _check_array(f"{kernel}: {argument.name}", argument, value, names, array_type)
    return tuple(numbers.get(argument.name, value) for argument, value in pairs)


def _number(where, argument, value):
    if not isinstance(value, (int, float, np.integer, np.floating)) or isinstance(value, bool):
        raise TypeError(f"{where}: a number is needed, {type(value).__name__} given")
    if argument.dtype.kind == "f":
        return argument.dtype.type(value)
    bounds = np.iinfo(argument.dtype)
    if value != int(value):
        raise TypeError(f"{where}: a whole number is needed, {value} given")
    if not bounds.min <= value <= bounds.max:
        raise OverflowError(f"{where}: {value} does not fit the kernel's {argument.dtype}")
    return argument.dtype.type(value)


def _check_array(where, argument, value, names, array_type):
    if not isinstance(value, array_type):
        raise TypeError(f"{where}: an array of the device is needed, {type(value).__name__} given")
    if value.dtype != argument.dtype:
        raise TypeError(f"{where}: an array of {argument.dtype} is needed, {value.dtype} given")
    if not value.flags.c_contiguous:
        raise ValueError(f"{where}: the array is not C-contiguous")
    sides = argument.sides(names)
    wanted, boundary = math.prod(sides), argument.boundary(sides)
    if value.size != wanted:
        raise ValueError(
            f"{where}: {wanted} elements are needed, the array of shape {value.shape} "
            f"has {value.size}"
        )
    if wanted > _MOST:
        raise ValueError(f"{where}: {wanted} elements, kernels reach {_MOST}: use a smaller batch")
    if _address(value) % boundary:
        raise ValueError(
            f"{where}: the array begins at no multiple of {boundary} bytes: it is a part of "
            "another one, take a copy"
        )


def _address(array):
    interface = getattr(array, "__cuda_array_interface__", None) or array.__array_interface__
    return interface["data"][0]
