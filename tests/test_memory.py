"""Memory of large arrays on the CPU: used again, and never by two arrays at a time."""

import collections

import numpy as np
import pytest

from kfcnet.ops.cpu import memory

SHAPE, DTYPE = (3, memory.LARGE // 4), np.dtype("float32")


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch):
    monkeypatch.setattr(memory, "_dropped", collections.defaultdict(collections.deque))


def address(array):
    return array.__array_interface__["data"][0]


def test_the_next_large_array_of_the_same_size_takes_the_memory_of_one_that_is_gone():
    first = memory.empty(SHAPE, DTYPE)
    place = address(first)
    del first
    again = memory.empty((SHAPE[1], 3), DTYPE)
    assert address(again) == place and again.shape == (SHAPE[1], 3)
    assert again.dtype == DTYPE and again.flags.c_contiguous and again.flags.writeable


def test_living_arrays_never_share_memory():
    arrays = [memory.empty(SHAPE, DTYPE) for _ in range(3)]
    for number, array in enumerate(arrays):
        array[...] = number
    assert [np.unique(array).tolist() for array in arrays] == [[0], [1], [2]]


def test_a_view_keeps_the_memory_of_its_array():
    array = memory.empty(SHAPE, DTYPE)
    array[...] = 1
    view = array[1:, ::2]
    del array
    memory.empty(SHAPE, DTYPE)[...] = 2
    assert np.unique(view).tolist() == [1]


def test_another_size_takes_memory_of_its_own():
    array = memory.empty(SHAPE, DTYPE)
    size = array.nbytes
    del array
    memory.empty((4, SHAPE[1]), DTYPE)
    assert len(memory._dropped[size]) == 1


@pytest.mark.parametrize("shape", [(), 5, (0, 4), (memory.LARGE // 4 - 1,)])
def test_small_arrays_are_numpys_own(shape):
    array = memory.empty(shape, DTYPE)
    assert array.shape == np.empty(shape).shape and array.base is None


def test_what_was_dropped_is_given_back_before_it_becomes_too_much(monkeypatch):
    """A program that predicts for ever other numbers of images keeps no memory of each."""
    monkeypatch.setattr(memory, "KEPT", 5 * memory.LARGE)
    for number in range(1, 30):
        memory.empty((memory.LARGE + number,), np.dtype("uint8"))
        assert sum(size * len(kept) for size, kept in memory._dropped.items()) < 7 * memory.LARGE


def test_what_is_dropped_after_all_was_given_back_is_not_kept():
    array = memory.empty(SHAPE, DTYPE)
    memory._dropped.clear()
    del array
    assert not any(memory._dropped.values())
