"""How many outputs windows have, against numbers that were counted by hand."""

import pytest

from kfcnet.ops.shapes import output_size, pooled_size


@pytest.mark.parametrize(
    ("size", "window", "stride", "clipped", "inside"),
    [(32, 3, 2, 16, 15), (8, 3, 2, 4, 3), (5, 2, 2, 3, 2), (6, 2, 2, 3, 3), (7, 3, 1, 5, 5),
     (4, 4, 3, 1, 1), (3, 5, 1, 1, -1)],
)  # fmt: skip
def test_pooling_windows_are_counted_with_those_that_the_border_clips(
    size, window, stride, clipped, inside
):
    assert pooled_size(size, window, stride) == clipped
    assert pooled_size(size, window, stride, clipped=False) == inside


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "count"),
    [(32, 5, 1, 2, 32), (32, 5, 1, 0, 28), (7, 3, 2, 0, 3), (7, 3, 2, 1, 4), (6, 2, 3, 0, 2),
     (2, 5, 1, 0, -2)],
)  # fmt: skip
def test_positions_of_a_kernel_are_counted(size, kernel, stride, padding, count):
    assert output_size(size, kernel, stride, padding) == count
