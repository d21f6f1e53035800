"""How many launches the recorded steps of the CIFAR-10 network have; each costs some microsecond.

Counted at M = 128 (SGD) and 512 (KFC-pre) on a runtime that launches nothing.
"""

from collections import Counter

import numpy as np
import pytest

from kfcnet.batches import Examples, Loader
from kfcnet.config import load_config
from kfcnet.ops.cpu.eager import as_generator
from kfcnet.ops.cuda import CudaOps
from kfcnet.ops.cuda.dry_run import DryRun
from kfcnet.training.build import build

INPUT_SHAPE = 32, 32, 3


class CountingRuntime(DryRun):
    """Counts what a step puts on the stream: launches by kernel, and copies."""

    def __init__(self):
        super().__init__(99 * 1024)
        self.counts = Counter()

    def launch(self, file, kernel, *rest):
        self.counts[kernel] += 1

    def copy_into(self, target, source):
        self.counts["copy"] += 1

    def copy(self, array):
        self.counts["copy"] += 1
        return super().copy(array)


def launches_of(name, *decisions):
    """Counter of the launches of one update, the mini-batch drawn as training draws it."""
    runtime = CountingRuntime()
    ops = CudaOps(runtime, tensor_cores=True)
    config = load_config(name)
    optimizer = build(config, ops, INPUT_SHAPE)
    optimizer.needs_preparation = False
    M = config.optimizer.batch_size
    images, labels = np.empty((2 * M, *INPUT_SHAPE), np.uint8), np.zeros(2 * M, np.int32)
    loader = Loader(Examples(ops, images, labels, np.zeros(INPUT_SHAPE), 1.0), M, seed=0)
    runtime.counts.clear()
    update = as_generator(optimizer.update)(loader.draw(optimizer.step_counter), *decisions)
    assert list(update) == [], "the host has work within the step"
    return runtime.counts


@pytest.mark.parametrize(
    "name, decisions, most",
    [("cifar_sgd", (), 40), ("cifar_kfc", (None, False), 75)],
    ids=["SGD", "KFC-pre"],
)
def test_a_step_has_no_more_launches_than_it_had(name, decisions, most):
    counts = launches_of(name, *decisions)
    assert counts.total() <= most, counts


def test_inverting_all_factors_takes_at_most_forty_launches_and_no_host():
    inverting = launches_of("cifar_kfc", None, True) - launches_of("cifar_kfc", None, False)
    assert inverting.keys() == {"spd_damp", "spd_sweep", "spd_adopt"}
    assert inverting["spd_sweep"] == 33 and inverting.total() <= 40
