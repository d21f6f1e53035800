import numpy as np
import pytest

from kfcnet.batches import BatchSequence
from kfcnet.philox import SHUFFLE, words


def test_batches_cut_the_sequence_of_epoch_permutations():
    examples, batch_size, seed = 7, 5, 11
    sequence = np.concatenate(
        [np.argsort(words(seed, SHUFFLE, epoch, examples), kind="stable") for epoch in range(5)]
    )
    batches = BatchSequence(examples, batch_size, seed)
    for step in range(7):
        expected = sequence[step * batch_size : (step + 1) * batch_size]
        np.testing.assert_array_equal(batches.indices(step), expected)
        assert batches.indices(step).dtype == np.int64


def test_every_epoch_holds_every_example_once():
    batches = BatchSequence(12, 8, 0)
    drawn = np.concatenate([batches.indices(step) for step in range(9)])
    for epoch in drawn.reshape(6, 12):
        np.testing.assert_array_equal(np.sort(epoch), np.arange(12))


def test_a_batch_may_be_larger_than_the_data_set():
    drawn = BatchSequence(3, 10, 0).indices(1)
    assert drawn.shape == (10,)
    np.testing.assert_array_equal(np.sort(drawn[2:8]), [0, 0, 1, 1, 2, 2])  # epochs 4 and 5


def test_indices_do_not_depend_on_what_was_asked_before():
    forward, backward = BatchSequence(50, 8, 3), BatchSequence(50, 8, 3)
    steps = range(20)
    expected = {step: forward.indices(step) for step in steps}
    for step in reversed(steps):
        np.testing.assert_array_equal(backward.indices(step), expected[step])


def test_changing_a_batch_does_not_change_the_sequence():
    batches = BatchSequence(10, 10, 3)
    expected = batches.indices(0).copy()
    batches.indices(0)[:] = 0
    np.testing.assert_array_equal(batches.indices(0), expected)


def test_seeds_and_epochs_are_shuffled_differently():
    batches = BatchSequence(100, 100, 0)
    assert (batches.indices(0) != batches.indices(1)).any()
    assert (batches.indices(0) != BatchSequence(100, 100, 1).indices(0)).any()


@pytest.mark.parametrize("examples, batch_size", [(0, 4), (4, 0), (4, -1)])
def test_sizes_must_be_positive(examples, batch_size):
    with pytest.raises(ValueError, match="at least 1"):
        BatchSequence(examples, batch_size, 0)
