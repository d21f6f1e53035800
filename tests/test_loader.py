"""Mini-batches drawn on the device by the number of their step."""

import numpy as np
import pytest

from kfcnet.batches import Examples, Loader

N = 7
IMAGES = np.arange(N * 6, dtype=np.uint8).reshape(N, 2, 1, 3)


def loader_of(ops, batch_size):
    labels = np.arange(N, dtype=np.int32)
    return Loader(Examples(ops, IMAGES, labels, np.zeros((2, 1, 3)), 1.0), batch_size, 3)


@pytest.mark.parametrize("batch_size", [2, 7, 16])
def test_a_loader_draws_the_batches_of_its_sequence(ops, batch_size):
    loader = loader_of(ops, batch_size)
    sequence = loader.sequence
    program, step = ops.captured(loader.draw), ops.counter(0)
    for index in range(12):
        loader.provide(index)
        batch, expected = program(step), sequence.indices(index)
        assert ops.to_numpy(batch.targets).tolist() == expected.tolist()
        np.testing.assert_array_equal(ops.to_numpy(batch.inputs), IMAGES[expected])
        ops.advance(step)


def test_a_loader_can_begin_at_any_step(ops64):
    loader = loader_of(ops64, 5)
    sequence = loader.sequence
    for step in (9, 3, 100):
        loader.provide(step)
        assert loader.draw(step).targets.tolist() == sequence.indices(step).tolist()


def test_a_loader_moves_orders_to_the_device_when_an_epoch_starts_only(ops64, monkeypatch):
    loader, writes = loader_of(ops64, 2), []
    monkeypatch.setattr(ops64, "write", lambda target, value: writes.append(len(value)))
    for step in range(14):  # four epochs
        loader.provide(step)
    assert writes == [N] * 4
