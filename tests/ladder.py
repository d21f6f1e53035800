"""The rungs of the ladder in kernels/, with the constants under which they are compared.

The products have the launchers' largest tiles, the convolutions the forward pass of conv2 of the
CIFAR-10 network, with the launchers' tiles where a rung has such tiles.
"""

import difflib
import re
from collections import Counter
from dataclasses import replace
from typing import NamedTuple

import compiled_counts
import numpy as np
import nvrtc
import sass
from cuda_on_cpu.orders import library

from kfcnet.ops.cuda import kernels
from kfcnet.ops.cuda.convolution import ConvShape, forward_tile
from kfcnet.ops.cuda.matmul import REGISTER_TILES, TENSOR_CORE_TILES

LIMIT = 99 * 1024  # bytes of shared memory of a block, as compiled_counts.py assumes
SIDE, DEPTH, IMAGES = 256, 64, 4  # of the launches that are emulated: enough for some blocks
CONV2 = ConvShape.of((128, 16, 16, 32), 32, kernel=5, stride=1, padding=2)
FORWARD, FORWARD_FP32 = (forward_tile(CONV2, tensor_cores, LIMIT) for tensor_cores in (True, False))
UNGROUPED = replace(FORWARD, depth_groups=1)

_PLAIN = dict(TRANSPOSE_A=0, TRANSPOSE_B=0, A_SHIFT=0, B_SHIFT=0, ACCUMULATE=0)
_CONV = CONV2.constants | dict(BIAS=1, RELU=0, ACCUMULATE=0)
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
    "mma": UNGROUPED.constants | dict(FRAGMENTS=0),
    "fragments": UNGROUPED.constants,
    "rounded": UNGROUPED.constants,
    "ldmatrix": UNGROUPED.constants,
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
    def text(self):
        return _text(self.file)

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

    @property
    def threads(self):
        """Of a block."""
        has, c = self.constants.get, self.constants
        if has("TILE"):
            return c["TILE"] ** 2
        if has("THREAD_ROWS"):
            tile, thread = (
                c["TILE_ROWS"] * c["TILE_COLUMNS"],
                c["THREAD_ROWS"] * c["THREAD_COLUMNS"],
            )
            return tile // thread * has("DEPTH_GROUPS", 1)
        if has("WARP_ROWS"):
            return (
                32 * (c["TILE_ROWS"] // c["WARP_ROWS"]) * (c["TILE_COLUMNS"] // c["WARP_COLUMNS"])
            )
        if self.file == "conv_forward_image":
            return c["TILE_IMAGES"] * c["TILE_HEIGHT"] * c["TILE_WIDTH"] * c["TILE_MAPS"]
        if has("WARPS_MAPS"):
            return 32 * c["WARPS_PIXELS"] * c["WARPS_MAPS"] * c["DEPTH_GROUPS"]
        return 256

    @property
    def dynamic_shared(self):
        """Bytes of a block."""
        c, rung = self.constants, self.file.rpartition("_")[2]
        if rung in ("mma", "stages") and "TILE_ROWS" in c:
            stages = 2 if rung == "mma" else c["STAGES"]
            return 4 * stages * c["TILE_DEPTH"] * (c["TILE_ROWS"] + c["TILE_COLUMNS"] + 16)
        by_rung = {
            "matmul_async": REGISTER_TILES[0].shared(0, 0),
            "matmul_register": REGISTER_TILES[0].shared(0, 0),
            "matmul_tf32": TENSOR_CORE_TILES[0].shared(0, 0),
            "conv_forward_register": FORWARD_FP32.shared,
            "conv_forward_tf32": FORWARD.shared,
        }
        ungrouped = "FRAGMENTS" in c and rung in ("mma", "fragments", "rounded", "ldmatrix")
        return by_rung.get(self.file, UNGROUPED.shared if ungrouped else 0)

    @property
    def step_multiply_adds(self):
        """Of a thread in one step of the depth; None where nothing is copied in steps."""
        c = self.constants
        if "TILE_ROWS" in c:
            return c["TILE_ROWS"] * c["TILE_COLUMNS"] * c["TILE_DEPTH"] // self.threads
        if "TILE_MAPS" in c:
            pixels = c["TILE_IMAGES"] * c["TILE_HEIGHT"] * c["TILE_WIDTH"]
            return pixels * c["TILE_MAPS"] * FORWARD.depth // self.threads
        return c.get("TILE")

    @property
    def bytes_asked(self):
        """Bytes that are asked of memory or its caches for a multiply-add."""
        c = self.constants
        if "TILE_ROWS" in c:
            return 4 / c["TILE_ROWS"] + 4 / c["TILE_COLUMNS"]
        if "TILE_MAPS" in c:  # the inputs that a tile sees, and its weights
            border = c["KERNEL_SIZE"] - 1
            inputs = (c["TILE_HEIGHT"] + border) * (c["TILE_WIDTH"] + border) * c["IN_MAPS"]
            depth, pixels = c["KERNEL_SIZE"] ** 2 * c["IN_MAPS"], c["TILE_HEIGHT"] * c["TILE_WIDTH"]
            return 4 * (inputs + c["TILE_MAPS"] * depth) / (pixels * c["TILE_MAPS"] * depth)
        return 8 / c.get("TILE", 1)

    def launch(self):
        """(grid, block, values) of a small launch."""
        c = self.constants
        if self.file.startswith("matmul"):
            a, b = np.zeros((SIDE, DEPTH), np.float32), np.zeros((DEPTH, SIDE), np.float32)
            out, sizes = np.empty((SIDE, SIDE), np.float32), map(np.int32, (SIDE, SIDE, DEPTH))
            block = {"matmul_naive": (32, 8), "matmul_tiled": (c.get("TILE"),) * 2}.get(self.file)
            across, down = block or (c["TILE_COLUMNS"], c["TILE_ROWS"])
            grid, block = (SIDE // across, SIDE // down), block or (self.threads,)
            return grid, block, [a, b, out, *sizes, np.float32(1)]
        sides = IMAGES, c["HEIGHT"], c["WIDTH"]
        x, y = (np.zeros((*sides, c[f"{side}_MAPS"]), np.float32) for side in ("IN", "OUT"))
        weight = np.zeros(c["OUT_MAPS"] * (1 + c["KERNEL_SIZE"] ** 2 * c["IN_MAPS"]), np.float32)
        blocks, block = (y.size // self.threads,), (self.threads,)
        if self.file == "conv_forward_tiled":
            tile = c["TILE"]
            blocks, block = (y[..., 0].size // tile, c["OUT_MAPS"] // tile), (tile, tile)
        elif "TILE_MAPS" in c:
            blocks = (y[..., 0].size // (c["TILE_HEIGHT"] * c["TILE_WIDTH"]),)
        return blocks, block, [x, weight, y, np.int32(IMAGES)]

    def counts(self):
        """{column: number} of the compiled kernel: see docs/ladder.md."""
        source = kernels.source(self.file), self.constants, compiled_counts.ARCHITECTURE
        used = nvrtc.resources(*source)[self.file]
        step = one_step(sass.loops(nvrtc.code(*source))[self.file], self.step_multiply_adds)
        shared = used.static_shared + self.dynamic_shared
        blocks = compiled_counts.resident_blocks(used.registers, self.threads, shared)
        return {
            "bytes": self.bytes_asked,
            "shared reads": step["LDS"] / products(step),
            "instructions": step.total() / products(step),
            "share": sum(step[name] for name in sass.PRODUCTS) / step.total(),
            "registers": used.registers,
            "shared KB": shared / 1024,
            "warps": blocks * self.threads // 32,
        }

    def conflicts(self):
        """Wavefronts of shared memory for one that is needed, as the emulation counts them; 0
        without shared memory."""
        kernel = library(self.file, tuple(sorted(self.constants.items()))).kernel(self.file)
        traffic = kernel.traffic(*self.launch(), self.dynamic_shared)
        return float(compiled_counts.worst_conflict(traffic) or 0)


def products(counts):
    """Multiply-adds of a lane among counted instructions."""
    return sum(each * counts[name] for name, each in sass.PRODUCTS.items())


def often(loop):
    """Counter of the instructions of most rounds of a loop."""
    return loop.always + loop.sometimes - loop.looping


def one_step(loops, multiply_adds):
    """Counter of what a thread executes in a step of the depth, in which it has `multiply_adds`.

    A step is a round of the loop with the most multiply-adds, or as many rounds as it takes and one
    of the loop around them, where that one waits at a barrier. Raises ValueError where they differ.
    """
    main = max(loops, key=lambda loop: products(often(loop)))
    before = loops[: loops.index(main)]
    around = [one for one in before if one.depth == main.depth - 1 and often(one)["BAR"]][-1:]
    if not around:
        return often(main)
    rounds, rest = divmod(multiply_adds, products(often(main)))
    if rest:
        raise ValueError(f"{multiply_adds} multiply-adds are no whole rounds of {main}")
    step = Counter(often(around[0]))
    for name, count in often(main).items():
        step[name] += rounds * count
    return step


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
