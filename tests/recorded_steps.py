"""What one step of a configuration launches, found on a runtime that launches nothing."""

from collections import Counter
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from cuda_on_cpu.branches import Branches

from kfcnet.batches import Examples, Loader
from kfcnet.config import load_config
from kfcnet.ops.cuda import CudaOps
from kfcnet.ops.cuda.dry_run import DryRun
from kfcnet.ops.deferred import as_generator
from kfcnet.training.build import build

INPUT_SHAPE = 32, 32, 3
SHARED_LIMIT = 99 * 1024


class Launch(NamedTuple):
    """A launch of a kernel; values: its arguments, arrays without contents among them."""

    file: str
    kernel: str
    constants: tuple
    grid: tuple
    block: tuple
    values: tuple
    shared: int


class Recorder(DryRun):
    """Keeps what is put on the streams: `queued`, of launches and of the names of those methods of
    Branches that put them there, and `copies`, how many copies of arrays.
    """

    def __init__(self):
        super().__init__(SHARED_LIMIT)
        self.begin()

    def begin(self):
        """Forget all that came before."""
        self.queued, self.copies = [], 0

    @property
    def launches(self):
        return [one for one in self.queued if isinstance(one, Launch)]

    def branches(self, length=lambda launch: 1):
        """The Branches of what was queued, the launches of these lengths."""
        branches = Branches()
        for one in self.queued:
            if isinstance(one, Launch):
                branches.add(one.kernel, length=length(one))
            else:
                getattr(branches, one)()
        return branches

    @contextmanager
    def beside(self):
        self.queued.append("fork")
        yield
        self.queued.append("back")

    def join_branch(self):
        self.queued.append("join")

    def launch(self, file, kernel, constants, grid, block, values, shared):
        constants = tuple(sorted(constants.items()))
        self.queued.append(Launch(file, kernel, constants, grid, block, values, shared))

    def copy_into(self, target, source):
        self.copies += 1

    def copy(self, array):
        self.copies += 1
        return super().copy(array)

    def counts(self):
        """Counter of the launches by kernel, and of the copies."""
        return Counter(launch.kernel for launch in self.launches) + Counter(copy=self.copies)


def record(name, batch_size, *decisions):
    """The Recorder of one update, the mini-batch drawn as training draws it.

    decisions: what `update` is told to do besides, as its optimizer takes it.
    """
    runtime = Recorder()
    ops = CudaOps(runtime, tensor_cores=True)
    config = load_config(name, [f"optimizer.batch_size={batch_size}"])
    optimizer = build(config, ops, INPUT_SHAPE)
    optimizer.needs_preparation = False
    images = np.empty((2 * batch_size, *INPUT_SHAPE), np.uint8)
    labels = np.zeros(2 * batch_size, np.int32)
    data = Examples(ops, images, labels, np.zeros(INPUT_SHAPE), 1.0)
    loader = Loader(data, batch_size, seed=0)
    runtime.begin()
    update = as_generator(optimizer.update)(loader.draw(optimizer.step_counter), *decisions)
    assert list(update) == [], "the host has work within the step"
    return runtime
