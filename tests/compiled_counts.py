"""What the machine code and the launches of a training step say about its kernels, counted.

Of every kernel that an SGD step of the CIFAR-10 network launches at M = 128, and a KFC-pre step
with statistics and inverses at M = 512: registers and loops from the code that NVRTC makes for
sm_90, blocks and warps from the launches, bank conflicts and sectors from the emulation of some of
the blocks. `python tests/compiled_counts.py > tests/compiled_counts.csv` writes the table anew:

    blocks_a_multiprocessor   that fit by registers, warps and shared memory
    blocks, warps, waves      of the largest launch of a step, warps a multiprocessor at a time
    mb                        of the arrays of that launch, each once
    loop                      instructions of every round of the loop where the work is; 0: no loop
    branches                  of that loop, which some rounds leave out
    HMMA ... other            the same instructions by class
    share                     of HMMA or FFMA among them
    windows                   where a convolution pools: instructions of every round of the longest
                              loop beside that one, branches included
    conflicts                 wavefronts of shared memory for one that is needed, at the worst place
    read_, write_sectors      of 32 bytes, for one that is needed
"""

import csv
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import nvrtc
import recorded_steps
import sass
from cuda_on_cpu.orders import library

from kfcnet.ops.cuda import kernels
from kfcnet.ops.cuda.launcher import MULTIPROCESSORS
from kfcnet.ops.shapes import ceil_div

ARCHITECTURE = "sm_90"
STEPS = {"sgd_128": ("cifar_sgd", 128), "kfc_512": ("cifar_kfc", 512, 0.5, True)}
TABLE = Path(__file__).with_name("compiled_counts.csv")
# Of a multiprocessor of sm_90: CUDA C programming guide, table of compute capabilities.
REGISTERS, WARPS, BLOCKS, SHARED, SHARED_OF_BLOCK = 64 * 1024, 64, 32, 228 * 1024, 1024
SAMPLED_BLOCKS = 4
OFTEN = 0.02  # of a kernel's requests to shared memory: a place that has fewer is in no main loop
FEW = 16  # elements of arrays that recorded_steps gives contents
CLASSES = *sass.CLASSES, "other"


class Specialised(NamedTuple):
    """A kernel with its constants, and its launches in each of STEPS, the largest first."""

    file: str
    kernel: str
    constants: tuple
    launches: dict

    @property
    def name(self):
        return f"{self.kernel} {_shape(dict(self.constants))}".strip()

    @property
    def example(self):
        """One of the launches."""
        return next(launches[0] for launches in self.launches.values() if launches)

    @property
    def threads(self):
        return int(np.prod(self.example.block))

    @property
    def source(self):
        return kernels.source(self.file), dict(self.constants), ARCHITECTURE

    def resources(self):
        return nvrtc.resources(*self.source)[self.kernel]

    def loops(self):
        """All of its sass.Loop."""
        return sass.loops(nvrtc.code(*self.source))[self.kernel]

    def loop(self):
        """That where its work is, or None."""
        return sass.main_loop(self.loops())


def specialised():
    """[Specialised] of the launches of STEPS, by name."""
    found = {}
    for step, arguments in STEPS.items():
        for launch in recorded_steps.record(*arguments).launches:
            key = launch.file, launch.kernel, launch.constants
            one = found.setdefault(key, Specialised(*key, {name: [] for name in STEPS}))
            one.launches[step].append(launch)
    for one in found.values():
        for launches in one.launches.values():
            launches.sort(key=_blocks, reverse=True)
    return sorted(found.values(), key=lambda one: one.name)


def _blocks(launch):
    return int(np.prod(launch.grid))


def megabytes(launch):
    """Of the arrays that a launch is given, each once."""
    arrays = {id(value): value.nbytes for value in launch.values if isinstance(value, np.ndarray)}
    return sum(arrays.values()) / 1e6


def _shape(constants):
    """What tells a kernel's specialisations apart, in a few words."""
    words = []
    if "HEIGHT" in constants:
        maps = constants.get("IN_MAPS", constants.get("MAPS"))
        words.append(f"{constants['HEIGHT']}x{constants['WIDTH']}x{maps}")
    if "OUT_MAPS" in constants:
        words.append(
            f"to {constants['OUT_MAPS']}"
            if "HEIGHT" in constants
            else f"{constants['IN_MAPS']} to {constants['OUT_MAPS']}"
        )
    if "TILE_COLUMNS" in constants and "TRANSPOSE_A" in constants:
        transposed = [("", "'")[constants[f"TRANSPOSE_{side}"]] for side in "AB"]
        shifted = [{-1: "1", 0: "", 1: "-"}[constants[f"{side}_SHIFT"]] for side in "AB"]
        words.append(f"{shifted[0]}a{transposed[0]} {shifted[1]}b{transposed[1]}")
        words.append("x".join(str(constants[f"TILE_{s}"]) for s in ("ROWS", "COLUMNS", "DEPTH")))
    words += [name.lower() for name in ("BIAS", "RELU", "ACCUMULATE") if constants.get(name)]
    if "PACKS" in constants:
        words.append(f"of {constants['PACKS'].count('{') // 2}")  # two braces a line
    if not words:
        words += [f"{name}={constants[name]}" for name in ("MAPS", "CLASSES") if name in constants]
    return " ".join(words)


def resident_blocks(registers, threads, shared):
    """Blocks that a multiprocessor of sm_90 holds at a time."""
    warps = ceil_div(threads, 32)
    of_warp = ceil_div(registers * 32, 256) * 256
    by_registers = REGISTERS // of_warp // 4 * 4 // warps
    return min(BLOCKS, WARPS // warps, by_registers, SHARED // (shared + SHARED_OF_BLOCK))


def residence(one):
    """{column: text} of a Specialised: what it needs, and how much of it is resident at a time."""
    used = one.resources()
    shared = used.static_shared + one.example.shared
    blocks_each = resident_blocks(used.registers, one.threads, shared)
    cells = {
        "kernel": one.name,
        "registers": used.registers,
        "threads": one.threads,
        "shared": shared,
        "blocks_a_multiprocessor": blocks_each,
    }
    for step, launches in one.launches.items():
        names = [f"{name}_{step}" for name in ("blocks", "warps", "waves", "mb")]
        cells |= dict.fromkeys(names, "")
        if launches:
            blocks = _blocks(launches[0])
            together = min(blocks / MULTIPROCESSORS, blocks_each)
            numbers = (
                blocks,
                f"{together * ceil_div(one.threads, 32):.1f}",
                f"{blocks / blocks_each / MULTIPROCESSORS:.2f}",
                f"{megabytes(launches[0]):.2f}",
            )
            cells |= dict(zip(names, numbers, strict=True))
    return cells


def instructions(one):
    """{column: text} of a Specialised: those of a round of its main loop, disassembled."""
    loop = one.loop()
    always = loop.always if loop else {}
    is_pooled = dict(one.constants).get("POOL_SIZE") and "KERNEL_SIZE" in dict(one.constants)
    arithmetic = max(always.get(name, 0) for name in sass.ARITHMETIC)
    return {
        "loop": loop.length if loop else 0,
        "branches": loop.sometimes.total() if loop else 0,
        **{name: always.get(name, 0) for name in CLASSES},
        "share": f"{arithmetic / loop.length:.2f}" if loop else "",
        "windows": max(_whole(each) for each in one.loops() if each is not loop)
        if is_pooled
        else "",
    }


def _whole(loop):
    """Instructions of a round with those of its branches; 0 where loops or barriers are inside."""
    counts = loop.always + loop.sometimes
    return 0 if loop.looping or counts["BAR"] else counts.total()


def traffic(one):
    """{column: text} of a Specialised: bank conflicts and sectors, from emulated blocks.

    Arrays hold zeros but for device scalars: where a kernel reads depends on indices alone.
    """
    launch = one.example
    copies = {id(v): _contents(v) for v in launch.values if isinstance(v, np.ndarray)}
    values = [copies.get(id(value), value) for value in launch.values]
    kernel = library(one.file, one.constants).kernel(one.kernel)
    found = kernel.traffic(launch.grid, launch.block, values, launch.shared, SAMPLED_BLOCKS)
    return {
        "conflicts": worst_conflict(found),
        "read_sectors": _ratio([t for t in found if not t.is_shared and not t.is_write]),
        "write_sectors": _ratio([t for t in found if not t.is_shared and t.is_write]),
    }


def worst_conflict(found):
    """Wavefronts of shared memory for each that was needed, where they are most; places that are
    seldom reached are left out.
    """
    shared = [one for one in found if one.is_shared]
    often = OFTEN * sum(one.requests for one in shared)
    return max((_ratio([one]) for one in shared if one.requests > often), default="")


def _ratio(found):
    ideal = sum(one.ideal for one in found)
    return f"{sum(one.taken for one in found) / ideal:.2f}" if ideal else ""


def _contents(array):
    """An array like it at a multiple of 256 bytes: zeros, or what the few of a scalar are."""
    memory = np.zeros(array.nbytes + 256, np.uint8)
    start = -memory.ctypes.data % 256
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    if array.size <= FEW:
        copy[...] = array
    return copy


def table():
    """{kernel: {column: text}} as it was written."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        return {cells["kernel"]: cells for cells in csv.DictReader(file)}


def main():
    rows = [residence(one) | instructions(one) | traffic(one) for one in specialised()]
    writer = csv.DictWriter(sys.stdout, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


if __name__ == "__main__":
    main()
