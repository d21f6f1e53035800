"""The rungs of the ladder in kernels/, with the constants under which they are compared.

The products have the launchers' largest tiles, the convolutions the forward pass of conv2 of the
CIFAR-10 network, with the launchers' tiles where a rung has such tiles.
"""

import difflib
import re
from typing import NamedTuple

from kfcnet.ops.cuda import kernels
from kfcnet.ops.cuda.convolution import ConvShape, forward_tile
from kfcnet.ops.cuda.matmul import REGISTER_TILES, TENSOR_CORE_TILES

LIMIT = 99 * 1024  # bytes of shared memory that a block can have, as on all since 8.6
CONV2 = ConvShape.of((128, 16, 16, 32), 32, kernel=5, stride=1, padding=2)
FORWARD, FORWARD_FP32 = (forward_tile(CONV2, tensor_cores, LIMIT) for tensor_cores in (True, False))

_PLAIN = dict(TRANSPOSE_A=0, TRANSPOSE_B=0, A_SHIFT=0, B_SHIFT=0)
_CONV = CONV2.constants | dict(BIAS=1, RELU=0)
_THREADS, _WARPS = REGISTER_TILES[0].constants, TENSOR_CORE_TILES[0].constants

MATMUL = {
    "naive": {},
    "tiled": dict(TILE=16),
    "thread_tile": _THREADS,
    "vector": _THREADS,
    "prefetch": _THREADS,
    "async": _THREADS,
    "register": _THREADS,
    "mma": _WARPS,
    "stages": _WARPS,
    "tf32": _WARPS,
}
CONV_FORWARD = {
    "naive": {},
    "tiled": dict(TILE=16),
    "image": FORWARD.constants | dict(TILE_HEIGHT=4, TILE_WIDTH=8),  # of a thread each
    "thread_tile": FORWARD_FP32.constants,
    "packed": FORWARD_FP32.constants,
    "register": FORWARD_FP32.constants,
    "mma": FORWARD.constants | dict(FRAGMENTS=0),
    "fragments": FORWARD.constants,
    "tf32": FORWARD.constants,
}
AFTER = {"matmul_mma": "matmul_async"}  # whose text it follows; otherwise the rung before
LAUNCHED = {f"{of}_{rung}" for of in ("matmul", "conv_forward") for rung in ("register", "tf32")}


class Rung(NamedTuple):
    """One file of the ladder, which holds a kernel of the same name."""

    file: str
    number: int
    constants: dict
    after: str | None
    before: str | None

    @property
    def path(self):
        return kernels.folder() / f"{self.file}.cu"

    @property
    def text(self):
        return self.path.read_text(encoding="utf-8")

    @property
    def header(self):
        """The comment that the file starts with, as one line a paragraph."""
        lines = self.text.split("\n#include")[0].split('\nextern "C"')[0].splitlines()
        text = "\n".join(line.removeprefix("//").strip() for line in lines)
        return re.sub(r"\n(?!\n|Before |Idea:|Left:)", " ", text)

    @property
    def idea(self):
        """What the first line says of the rung."""
        return re.search(rf"rung {self.number}: (.*?)\.(?: |\n|$)", self.header)[1]

    @property
    def changed(self):
        """(lines that are new, lines that are gone) since the rung that it follows, in code."""
        after = AFTER.get(self.file, self.after)
        if after is None:
            return len(_code(self.text)), 0
        lines = list(difflib.unified_diff(*(_code(_text(f)) for f in (after, self.file)), n=0))[2:]
        return tuple(sum(line.startswith(sign) for line in lines) for sign in "+-")


def _text(file):
    return (kernels.folder() / f"{file}.cu").read_text(encoding="utf-8")


def _code(text):
    """The lines of a file without its comments."""
    lines = (re.sub(r" *//.*", "", line) for line in text.splitlines())
    return [line for line in lines if line]


def _rungs(name, constants, shape):
    files = [f"{name}_{rung}" for rung in constants]
    return [
        Rung(file, i + 1, shape | constants[rung], after, before)
        for i, (rung, file, after, before) in enumerate(
            zip(constants, files, [None, *files], [*files[1:], None], strict=False)
        )
    ]


LADDERS = {
    "matmul": _rungs("matmul", MATMUL, _PLAIN),
    "conv_forward": _rungs("conv_forward", CONV_FORWARD, _CONV),
}
RUNGS = sum(LADDERS.values(), [])
