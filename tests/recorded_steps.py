"""What one step of a configuration launches, found on a runtime that launches nothing."""

from collections import Counter
from typing import NamedTuple

import numpy as np

from kfcnet.batches import Examples, Loader
from kfcnet.config import load_config
from kfcnet.ops.cpu.eager import as_generator
from kfcnet.ops.cuda import CudaOps
from kfcnet.ops.cuda.dry_run import DryRun
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
    """Keeps what is put on the stream: `launches`, and `copies`, how many copies of arrays."""

    def __init__(self):
        super().__init__(SHARED_LIMIT)
        self.launches, self.copies = [], 0

    def launch(self, file, kernel, constants, grid, block, values, shared):
        constants = tuple(sorted(constants.items()))
        self.launches.append(Launch(file, kernel, constants, grid, block, values, shared))

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
    runtime.launches, runtime.copies = [], 0
    update = as_generator(optimizer.update)(loader.draw(optimizer.step_counter), *decisions)
    assert list(update) == [], "the host has work within the step"
    return runtime
