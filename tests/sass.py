"""Machine code of a kernel, read: its basic blocks, its loops, and what each loop executes.

The code comes from NVRTC (nvrtc.py) through nvdisasm, which the extra `test` brings in the package
nvidia-cuda-nvdisasm.
"""

import os
import re
import shutil
import subprocess
from collections import Counter
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

_SECTION = re.compile(r"^//-+ \.text\.(\w+)\s+-+$", re.MULTILINE)
_LINE = re.compile(r"^(\.L_x_\d+):|^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);")
_TARGET = re.compile(r"`\((\.L_x_\d+)\)")
CLASSES = {  # of the issue slots of a loop; what is none of these is address, loop and move
    "HMMA": ("HMMA",),
    "FFMA": ("FFMA", "FADD", "FMUL"),
    "LDS": ("LDS", "LDSM"),
    "STS": ("STS",),
    "LDG": ("LDG",),
    "STG": ("STG",),
    "LDGSTS": ("LDGSTS",),
    "BAR": ("BAR",),
}
_CLASS = {opcode: name for name, opcodes in CLASSES.items() for opcode in opcodes}
PRODUCTS = {"HMMA": 16 * 8 * 8 // 32, "FFMA": 1}  # multiply-adds of a lane, by class of instruction
ARITHMETIC = tuple(PRODUCTS)


@cache
def disassembler():
    """The path of nvdisasm, or None."""
    spec = find_spec("nvidia")
    for folder in spec.submodule_search_locations if spec else ():
        for path in sorted(Path(folder).glob("*/bin/nvdisasm*")):
            if os.access(path, os.X_OK):
                return str(path)
    return shutil.which("nvdisasm")


def missing():
    """Why nothing can be disassembled here, or None."""
    if disassembler():
        return None
    return "nvdisasm is not installed: pip install nvidia-cuda-nvdisasm"


class Loop(NamedTuple):
    """A loop without those inside it, of which each round executes `always` by class of
    instruction, and `sometimes` what a branch may leave out. A branch to the most arithmetic of
    the loop is one that is taken. depth: 1 for an outermost one.

    looping: the part of `sometimes` in branches that hold a loop of their own.
    """

    always: Counter
    sometimes: Counter
    depth: int
    looping: Counter

    @property
    def length(self):
        """Instructions of every round."""
        return self.always.total()

    def share(self, name):
        """Of the instructions of every round, how many are of a class: 0 to 1."""
        return self.always[name] / self.length


@cache
def loops(path):
    """{kernel: [Loop]} of a file of machine code, in the order of the code."""
    command = [disassembler(), "-c", str(path)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    _, *parts = _SECTION.split(text)
    return {
        name: _loops(_basic_blocks(body))
        for name, body in zip(parts[::2], parts[1::2], strict=True)
    }


def main_loop(found):
    """The loop where a kernel's work is, or None without a loop: that with the most arithmetic; by
    that the most accesses to memory, and by that the most instructions.
    """

    def work(loop):
        return (
            _arithmetic(loop.always),
            sum(loop.always[name] for name in _CLASS.values()),
            loop.length,
        )

    return max(found, key=work, default=None)


def _arithmetic(counts):
    return sum(PRODUCTS[name] * counts[name] for name in ARITHMETIC)


class _Block(NamedTuple):
    counts: Counter
    successors: list


def _basic_blocks(body):
    """[_Block], the first being the entry."""
    blocks, label_of, targets, is_open = [], {}, [], False
    for match in filter(None, map(_LINE.match, body.splitlines())):
        label, opcode, rest = match.groups()
        if label:
            label_of[label] = len(blocks)
            is_open = False
            continue
        if not is_open:
            blocks.append(Counter())
            targets.append(([], True))
            is_open = True
        name = opcode.partition(".")[0]
        blocks[-1][_CLASS.get(name, "other")] += 1
        if name in ("BRA", "EXIT"):
            is_conditional = "@" in match[0] and "@PT" not in match[0]
            targets[-1] = (_TARGET.findall(rest), is_conditional)
            is_open = False
    return [
        _Block(
            counts,
            [label_of[to] for to in jumps] + ([i + 1] if falls and i + 1 < len(blocks) else []),
        )
        for i, (counts, (jumps, falls)) in enumerate(zip(blocks, targets, strict=True))
    ]


def _loops(blocks):
    dominators = _dominators(blocks)
    bodies, latches = {}, {}
    for latch, block in enumerate(blocks):
        for header in block.successors:
            if header in dominators[latch] and header != latch or header == latch:
                bodies.setdefault(header, set()).update(_natural_loop(blocks, latch, header))
                latches.setdefault(header, []).append(latch)
    found = []
    for header, body in sorted(bodies.items()):
        if all(not blocks[i].counts for i in body) or _is_trap(blocks, body):
            continue
        inner = set().union(*(other for other in bodies.values() if other < body))
        own = body - inner
        every = set.intersection(*(dominators[latch] for latch in latches[header]))
        every = (every | dominators[max(own, key=lambda i: _arithmetic(blocks[i].counts))]) & own
        branches = own - every
        holding = {i for i in branches for head in inner & bodies.keys() if i in dominators[head]}
        looping = {i for i in branches if dominators[i] & holding}
        found.append(
            Loop(
                sum((blocks[i].counts for i in every), Counter()),
                sum((blocks[i].counts for i in branches), Counter()),
                sum(body <= other for other in bodies.values()),
                sum((blocks[i].counts for i in looping), Counter()),
            )
        )
    return found


def _is_trap(blocks, body):
    """The branch to itself behind the end of a kernel."""
    return len(body) == 1 and blocks[next(iter(body))].counts.total() == 1


def _dominators(blocks):
    """For each block those that every way from the entry to it passes, itself included."""
    predecessors = [[] for _ in blocks]
    for i, block in enumerate(blocks):
        for successor in block.successors:
            predecessors[successor].append(i)
    everything = set(range(len(blocks)))
    dominators = [{0}] + [everything] * (len(blocks) - 1)
    changed = True
    while changed:
        changed = False
        for i in range(1, len(blocks)):
            before = [dominators[p] for p in predecessors[i]]
            now = {i} | (set.intersection(*before) if before else set())
            if now != dominators[i]:
                dominators[i], changed = now, True
    return dominators


def _natural_loop(blocks, latch, header):
    """The blocks from which the latch is reached without the header, and the header."""
    predecessors = {}
    for i, block in enumerate(blocks):
        for successor in block.successors:
            predecessors.setdefault(successor, []).append(i)
    body, pending = {header}, [latch]
    while pending:
        block = pending.pop()
        if block not in body:
            body.add(block)
            pending += predecessors.get(block, [])
    return body
