"""Budgets of the kernels, held against the table that compiled_counts.py writes.

The table is held against the code, the launches and the emulation; the budgets are read from it.
"""

import cuda_on_cpu
import nvrtc
import pytest
import sass
from compiled_counts import (
    STEPS,
    instructions,
    residence,
    resident_blocks,
    specialised,
    table,
    traffic,
)

needs_compiler = pytest.mark.skipif(
    bool(nvrtc.missing() or sass.missing()), reason=str(nvrtc.missing() or sass.missing())
)
needs_emulation = pytest.mark.skipif(
    cuda_on_cpu.missing() is not None, reason=str(cuda_on_cpu.missing())
)
ALL = specialised()
FAST = "conv_forward_tf32 16x16x32", "matmul_register", "gram_offsets_slices 32x32x3"
SLACK = 1.1  # of a loop, from one version of the compiler to the next
MAIN = 1.0  # MB that a launch moves at least, to be one whose speed matters

FEW_WARPS = {  # of kernels, by how their names begin: why they may have few
    "avg_pool 8x8x64": "128 blocks; four maps a thread, eight warps a block",
    "conv_backward_weights_tf32 16x16x32": "one block, but of 13 warps, whose sums fill registers",
    "conv_backward_weights_tf32 8x8x32": "likewise",
    "conv_forward_tf32 8x8": "7.8: one block of eight warps for each of 128 images",
    "gram_offsets_slices 32x32x3": "81 items: a slice of a border's pixels is short",
    "gram_sum_lanes": "small matrices",
    "matmul": "small results; the warps of a block share the depth: see REGISTER_TILES",
    "momentum_update": "90,000 parameters, four a thread",
    "multiply_add": "likewise",
}


def number(text):
    return float(text or 0)


def may_have_few_warps(name):
    return any(name.startswith(start) for start in FEW_WARPS)


def test_table_has_a_line_for_every_kernel_of_a_step():
    names = [one.name for one in ALL]
    assert len(set(names)) == len(names), "two specialisations have one name"
    assert list(table()) == names


SOME = [
    pytest.param(one, id=one.name, marks=() if one.name.startswith(FAST) else pytest.mark.slow)
    for one in ALL
]


@pytest.mark.skipif(bool(nvrtc.missing()), reason=str(nvrtc.missing()))
@pytest.mark.parametrize("one", ALL, ids=lambda one: one.name)
def test_a_kernel_spills_nothing_and_needs_no_more_than_the_table_says(one):
    found, limit = residence(one), table()[one.name]
    assert one.resources().spilled == 0
    for column in ("registers", "shared", *(f"waves_{step}" for step in STEPS)):
        assert number(found[column]) <= number(limit[column]), column
    for column in ("blocks_a_multiprocessor", *(f"warps_{step}" for step in STEPS)):
        assert number(found[column]) >= number(limit[column]), column


@needs_compiler
@pytest.mark.parametrize("one", SOME)
def test_a_loop_has_no_more_instructions_than_the_table_says(one):
    found, limit = instructions(one), table()[one.name]
    assert found["loop"] <= SLACK * number(limit["loop"])
    assert number(found["share"]) >= number(limit["share"]) / SLACK


@needs_emulation
@pytest.mark.parametrize("one", SOME)
def test_emulation_counts_the_conflicts_and_sectors_of_the_table(one):
    limit = table()[one.name]
    for column, found in traffic(one).items():
        assert number(found) == pytest.approx(number(limit[column]), abs=0.02), column


@pytest.mark.parametrize("step", STEPS)
def test_kernels_that_move_much_have_two_blocks_or_eight_warps_a_multiprocessor(step):
    for name, cells in table().items():
        if number(cells[f"mb_{step}"]) < MAIN or may_have_few_warps(name):
            continue
        is_full = number(cells["blocks_a_multiprocessor"]) >= 2
        assert is_full and number(cells[f"warps_{step}"]) >= 8, name


def test_no_loop_has_bank_conflicts_above_two_way():
    for name, cells in table().items():
        assert number(cells["conflicts"]) <= 2, name


LOOPS = """extern "C" __global__ void loops(const float* x, float* y, int rows, int columns) {
    float sum = 0.0f;
#pragma unroll 1
    for (int row = 0; row < rows; ++row) {
        __syncthreads();
        float product = 1.0f;
#pragma unroll 1
        for (int column = 0; column < columns; ++column)
            for (int i = 0; i < 3; ++i) product *= x[(row * columns + column) * 3 + i];
        if (product > 1.0f) y[row] = product;
        sum += product;
    }
    y[rows] = sum;
}"""


@needs_compiler
def test_loops_are_found_in_machine_code():
    found = sass.loops(nvrtc.code(LOOPS, {}, "sm_90"))["loops"]
    outer, inner = sorted(found, key=lambda loop: loop.depth)
    assert (outer.depth, outer.always["BAR"], outer.always["FFMA"]) == (1, 1, 1)
    assert (outer.always["STG"], outer.always["LDG"]) == (1, 0)  # a predicated one takes its slot
    assert (inner.depth, inner.always["LDG"], inner.always["FFMA"]) == (2, 3, 3)
    assert sass.main_loop(found) is inner
    assert inner.share("FFMA") == 3 / inner.length


def test_code_without_a_loop_has_no_main_one():
    assert sass.main_loop([]) is None


@pytest.mark.parametrize(
    "registers, threads, shared, blocks",
    [(132, 224, 81984, 1), (128, 224, 81984, 2), (32, 256, 0, 8), (40, 256, 0, 6), (16, 32, 0, 32)],
)
def test_blocks_that_fit_a_multiprocessor(registers, threads, shared, blocks):
    assert resident_blocks(registers, threads, shared) == blocks


def test_tensor_cores_have_a_third_of_the_second_convolutions_issue_slots():
    cells = table()["conv_forward_tf32 16x16x32 to 32 bias relu"]
    assert number(cells["loop"]) <= 100 and number(cells["share"]) > 0.3


def test_reasons_are_of_kernels_that_are_there():
    for start in FEW_WARPS:
        assert any(name.startswith(start) for name in table()), start
