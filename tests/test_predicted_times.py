"""The predicted times of steps: the table is what the counts give, and within its bounds."""

import csv

import pytest
import recorded_steps
from compiled_counts import Specialised, table
from predicted_times import (
    GAP,
    SHORTEST,
    STEPS,
    TABLE,
    average,
    microseconds,
    multiply_adds,
    of_step,
    pooled,
    predictions,
    work,
)


@pytest.fixture(scope="module")
def launches():
    return recorded_steps.record("cifar_kfc", 512, 0.5, True).launches


def of(launches, kernel):
    return [launch for launch in launches if launch.kernel == kernel]


def test_table_is_what_the_counts_give():
    with TABLE.open(encoding="utf-8", newline="") as file:
        written = list(csv.DictReader(file))
    found = [{name: str(cell) for name, cell in row.items()} for row in predictions()]
    assert written == found


def test_predicted_steps_keep_to_their_bounds():
    times = [of_step(recorded_steps.record(*arguments)) for arguments in STEPS.values()]
    sgd, kfc = times[0], average(*times[1:])
    assert sgd <= 160 and kfc <= 640
    assert kfc <= 4 * sgd, "an epoch of each"


def test_multiply_adds_are_those_of_the_layers(launches):
    conv = [multiply_adds(launch) for launch in of(launches, "conv_forward_tf32")]
    pixels = 512 * 32 * 32, 512 * 16 * 16, 512 * 8 * 8
    forward = [pixels[0] * 32 * 75, pixels[1] * 32 * 800, pixels[2] * 64 * 800]
    assert conv[:2] == forward[1:]
    (first,) = of(launches, "conv_max_pool")  # four tiles an image, of nine rows in place of eight
    assert multiply_adds(first) == forward[0] * 9 // 8
    weights = [multiply_adds(one) for one in of(launches, "conv_backward_weights_tf32")]
    assert sorted(weights) == sorted(forward)
    omega = [multiply_adds(one) for one in of(launches, "gram_offsets_slices")]
    assert pixels[1] // 4 * 32 * 41 * 32 in omega  # of a quarter of the mini-batch
    assert all(multiply_adds(launch) == 0 for launch in of(launches, "max_pool"))


def test_sweeps_multiply_the_tiles_on_and_above_the_diagonal_of_matrices_that_are_not_through(
    launches,
):
    sweeps = of(launches, "spd_sweep")
    sides = [int(side) for side in dict(sweeps[0].constants)["SIDES"].split(",")]
    blocks = 0
    for pivot in range(0, 32 * len(sweeps), 32):
        for side in (side for side in sides if pivot < side):
            across = range(0, side, 64)
            blocks += sum(row <= column for row in across for column in across)
    of_block = 64 * 32 * 64 + 64 * 32 * 32 + 32 * 32 * 32  # the loops of kernels/spd_inverse.cu
    found = sum(map(multiply_adds, sweeps))
    assert found == pytest.approx(blocks * of_block, rel=1e-6)
    stated = sum(1.75 * side**2 * (side + 64) for side in sides) / 2  # kernels/README.md
    assert stated < found < 1.2 * stated  # the last tile and pivots stand over


def test_windows_are_pooled_and_spread_in_the_rounds_of_their_loops(launches):
    (first,), tangents = of(launches, "conv_max_pool"), of(launches, "conv_max_pool_tangent")
    windows = 512 * 16 * 16 * 32  # of the step; the tangent is that of a quarter of its examples
    assert pooled(first) == windows // 4
    assert [pooled(launch) for launch in tangents] == [windows // 4]
    spread = [pooled(launch) for launch in of(launches, "conv_backward_weights_tf32")]
    assert sorted(spread) == [0, 0, windows // 4]  # four maps of 2 x 2 positions a round
    cells = table()[Specialised(*first[:3], {}).name]
    without, _ = work(first, cells | {"windows": "0"})
    assert work(first, cells)[0] > without


def test_a_launch_takes_longer_with_fewer_warps_and_never_less_than_its_gap(launches):
    conv = of(launches, "conv_forward_tf32")[0]
    cells = table()[Specialised(*conv[:3], {}).name]
    full = microseconds(conv, cells)
    assert full > GAP + SHORTEST
    assert microseconds(conv, cells | {"blocks_a_multiprocessor": "1"}) > full
    (clip,) = of(launches, "clip_scale")
    cells = table()[Specialised(*clip[:3], {}).name]
    assert microseconds(clip, cells) == GAP + SHORTEST
