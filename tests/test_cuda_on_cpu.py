"""The harness that runs CUDA kernels on the CPU: right ones pass, every planted fault is found."""

from pathlib import Path

import numpy as np
import pytest
from checks import assert_close
from cuda_on_cpu import ORDERS, KernelError, Library, missing, run_in_orders

from kfcnet.ops.cuda import kernels

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))
HERE = Path(__file__).parent / "cuda_on_cpu"
i32 = np.int32


def kernel(name, file="faults", **constants):
    names = "WAIT", "BARRIER", "ROWS", "COLUMNS", "DEPTH", "PITCH", "STEP"
    text = kernels.splice(HERE / f"{file}.cu")
    return Library(text, dict.fromkeys(names, 1) | constants, file).kernel(name)


def example(name, **constants):
    return kernel(name, "examples", **constants)


def normal(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def empty(*shape, dtype=np.float32):
    return np.full(shape, -1 if np.dtype(dtype).kind == "i" else np.nan, dtype)


# What is right passes, under every order


def test_barrier_makes_shared_memory_of_others_readable():
    x, y = normal(64), empty(64)
    run_in_orders(kernel("reverse"), (1,), (64,), (x, y))
    np.testing.assert_array_equal(y, x[::-1])


def test_warp_barrier_orders_the_lanes_of_a_warp():
    x, y = normal(64), empty(64)
    run_in_orders(example("warp_reverse"), (1,), (64,), (x, y))
    np.testing.assert_array_equal(y, x.reshape(2, 32)[:, ::-1].ravel())


def test_row_sums_through_shuffles_and_dynamic_shared_memory():
    x, sums = normal(5, 301), empty(5)
    run_in_orders(example("row_sums", ROWS=5, COLUMNS=301), (5,), (96,), (x, sums), shared=12)
    assert_close(sums, x.sum(axis=1, dtype=np.float64), 1e-5)


def test_warp_collectives_exchange_what_cuda_says():
    x, y = np.random.default_rng(1).integers(0, 100, 64).astype(i32), empty(64, 7, dtype=i32)
    run_in_orders(example("collectives"), (1,), (64,), (x, y))
    warps, lane = x.reshape(2, 32), np.arange(32)
    votes = ((warps % 2).astype(np.uint32) << lane.astype(np.uint32)).sum(axis=1, dtype=np.uint32)
    expected = [
        warps[:, (lane + 5) % 32],
        warps[:, np.where(lane >= 3, lane - 3, lane)],
        warps[:, np.where(lane % 8 < 6, lane + 2, lane)],
        warps[:, lane ^ 9],
        votes.view(i32)[:, None] + 0 * warps,
        (warps == 7).any(axis=1)[:, None] + 0 * warps,
        1 + 0 * warps,
    ]
    np.testing.assert_array_equal(y, np.stack(expected, axis=-1).reshape(64, 7))


def test_tensor_core_product_has_the_precision_of_tf32():
    rows, columns, depth = 32, 24, 40
    a, b, c = normal(rows, depth), normal(depth, columns), empty(rows, columns)
    product = example("tensor_core_product", ROWS=rows, COLUMNS=columns, DEPTH=depth)
    run_in_orders(product, (columns // 8, rows // 16), (32,), (a, b, c))
    exact = a.astype(np.float64) @ b
    error = np.linalg.norm(c - exact) / np.linalg.norm(exact)
    assert 1e-5 < error < 1e-3  # neither that of float32 nor that of a wrong fragment


def test_tensor_cores_cut_off_what_is_below_the_largest_term():
    a, b, c = np.zeros((16, 16), np.float32), np.zeros((16, 8), np.float32), empty(16, 8)
    a[:, 0], b[0] = 1, 1
    a[:, 4:], b[4:8], b[8:] = 2**-12, -(2**-12), 2**-12  # half a unit of the last place each
    product = example("tensor_core_product", ROWS=16, COLUMNS=8, DEPTH=16)
    run_in_orders(product, (1, 1), (32,), (a, b, c))
    np.testing.assert_array_equal(c, 1)
    a[:, 0], exact = 0, a[:, 1:].astype(np.float64) @ b[1:]
    run_in_orders(product, (1, 1), (32,), (a, b, c))
    np.testing.assert_array_equal(c, exact)  # of terms of one size nothing is cut off


def test_grids_and_blocks_have_three_dimensions():
    y = empty(24, 30, dtype=i32)
    run_in_orders(example("places"), (3, 2, 4), (5, 2, 3), (y,))
    np.testing.assert_array_equal(y, 1000 * np.arange(24)[:, None] + np.arange(30))


@pytest.mark.parametrize("valid", [16, 13])
def test_asynchronous_copy_delivers_at_the_wait_and_zeros_what_is_not_valid(valid):
    x, y = normal(64), empty(64)
    run_in_orders(kernel("asynchronous"), (1,), (64,), (x, y, i32(valid)))
    np.testing.assert_array_equal(y, np.where(np.arange(64) < 4 * valid, x, 0)[::-1])


# Faults


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "name, sizes, message",
    [
        ("reverse_without_barrier", (64, 64), "race on shared memory|before it was written"),
        ("overwrites_what_others_read", (128, 64), "race on shared memory"),
    ],
)
def test_missing_barrier_is_a_race_under_any_order(name, sizes, message, order):
    with pytest.raises(KernelError, match=message):
        kernel(name).launch((1,), (64,), [normal(size) for size in sizes], order=order)


def test_two_blocks_on_one_element_are_a_race():
    with pytest.raises(KernelError, match="race on y: .* of another block"):
        kernel("blocks_share_an_element").launch((2,), (32,), (normal(64), normal(1)))


def test_result_that_depends_on_the_order_is_found_though_no_access_races():
    arguments = np.zeros(1, i32), np.zeros(64, i32)
    with pytest.raises(KernelError, match="depends on the order"):
        run_in_orders(kernel("order_of_atomics"), (1,), (64,), arguments)


@pytest.mark.parametrize(
    "name, message",
    [
        ("uninitialised_shared", "shared memory read before it was written"),
        ("divergent_barrier", "divergent __syncthreads"),
        ("lane_outside_mask", "has exited|not reached by all lanes"),
    ],
)
def test_fault_of_a_block_is_found(name, message):
    with pytest.raises(KernelError, match=message):
        kernel(name).launch((1,), (64,), (empty(64),))


def test_barrier_that_a_finished_thread_cannot_reach_is_found():
    barrier = kernel("barrier_after_exit")
    barrier.launch((1,), (64,), (empty(64), i32(64)))
    with pytest.raises(KernelError, match="has left the kernel"):
        barrier.launch((1,), (64,), (empty(64), i32(63)))


def test_warp_and_block_waiting_for_each_other_are_a_deadlock():
    with pytest.raises(KernelError, match="deadlock"):
        kernel("warp_against_block").launch((1,), (32,), (empty(32),))


@pytest.mark.parametrize(
    "start, to, message",
    [
        (1, 0, r"read of 4 bytes outside the arrays: x\[64\], which has 64 elements"),
        (-1, 0, r"read of 4 bytes outside the arrays: x\[-1\]"),
        (0, 2, r"write of 4 bytes outside the arrays: y\[64\]"),
    ],
)
def test_access_outside_an_array_names_array_element_and_line(start, to, message):
    # Both lie in one allocation: what is next to an array in memory does not matter.
    memory = np.zeros(4096, np.float32)
    x, y = memory[:64], memory[2048:2112]
    with pytest.raises(KernelError, match=message + r".*faults.cu:\d+"):
        kernel("shifted").launch((1,), (64,), (x, y, i32(start), i32(to)))
    assert (memory[2112:] == 0).all()


def test_shared_array_overrun_is_found():
    with pytest.raises(KernelError, match=r"outside a local or shared array at faults.cu:\d+"):
        kernel("shared_overrun").launch((1,), (32,), (empty(32), i32(1)))


def test_misaligned_vector_load_is_found():
    x, y = aligned(normal(64)), aligned(empty(64))
    copy = kernel("vector_copy")
    copy.launch((1,), (16,), (x, y, i32(0)))
    np.testing.assert_array_equal(y, x)
    with pytest.raises(KernelError, match="misaligned access at faults.cu"):
        copy.launch((1,), (15,), (x, y, i32(1)))


def aligned(array):
    """A copy that starts at a multiple of 256 bytes, as the runtime's allocations do."""
    memory = np.empty(array.nbytes + 256, np.uint8)
    start = -memory.ctypes.data % 256
    copy = memory[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


@pytest.mark.parametrize(
    "name, arguments, message",
    [
        ("null_pointer", (None, empty(64)), "read through a null pointer"),
        ("divides", (empty(64, dtype=i32), i32(0)), "division by zero"),
        ("overflows", (empty(64, dtype=i32), i32(2**27)), "integer overflow"),
    ],
)
def test_undefined_operation_is_found(name, arguments, message):
    with pytest.raises(KernelError, match=message):
        kernel(name).launch((1,), (64,), arguments)


def test_missing_wait_reads_nan():
    x, y = normal(64), empty(64)
    kernel("asynchronous", WAIT=0).launch((1,), (64,), (x, y, i32(16)))
    assert np.isnan(y).all()


def test_missing_barrier_after_an_asynchronous_copy_is_found():
    with pytest.raises(KernelError, match="race on shared memory|before it was written"):
        kernel("asynchronous", BARRIER=0).launch((1,), (64,), (normal(64), empty(64), i32(16)))


def test_wait_for_all_but_one_group_delivers_only_the_first():
    x, first, second = normal(64), empty(32), empty(32)
    kernel("two_groups").launch((1,), (32,), (x, first, second))
    np.testing.assert_array_equal(first, x[:32])
    assert np.isnan(second).all()


@pytest.mark.parametrize("block", [(1025,), (0,), (1, 1, 65)])
def test_block_that_no_gpu_accepts_is_refused(block):
    with pytest.raises(KernelError, match="no GPU accepts"):
        kernel("reverse").launch((1,), block, (normal(64), empty(64)))


# Traffic


def traffic_of(name, block, *values, **constants):
    """{(is_shared, is_write): (requests, taken, ideal)} of one block."""
    found = example(name, **constants).traffic((1,), block, values)
    return {(one.is_shared, one.is_write): one[-3:] for one in found}


@pytest.mark.parametrize("pitch, wavefronts", [(32, 32 * 32), (33, 32), (34, 2 * 32)])
def test_columns_of_a_tile_take_a_wavefront_for_each_row_of_a_bank(pitch, wavefronts):
    found = traffic_of(
        "turns_a_tile", (128,), aligned(normal(1024)), empty(1024), PITCH=pitch, STEP=1
    )
    assert found[True, True] == (32, 32, 32)
    assert found[True, False] == (32, wavefronts, 32)


@pytest.mark.parametrize("step, sectors", [(1, 4), (2, 8), (8, 32)])
def test_elements_far_apart_take_a_sector_each(step, sectors):
    y = aligned(empty(1024 * step))
    found = traffic_of("turns_a_tile", (128,), aligned(normal(1024)), y, PITCH=33, STEP=step)
    assert found[False, True] == (32, 32 * sectors, 32 * 4)


@pytest.mark.parametrize("lanes", [32, 9])
def test_vectors_go_in_quarters_of_a_warp(lanes):
    x, y = aligned(normal(128)), aligned(empty(128))
    found = traffic_of("moves_vectors", (32,), x, y, i32(lanes))
    quarters, sectors = -(-lanes // 8), -(-lanes // 2)
    for is_write in (False, True):
        assert found[True, is_write] == (1, quarters, quarters)
        assert found[False, is_write] == (1, sectors, sectors)


def test_counting_does_not_outlast_its_launch():
    x, y = aligned(normal(128)), aligned(empty(128))
    moves = example("moves_vectors")
    moves.traffic((1,), (32,), (x, y, i32(32)))
    with pytest.raises(KernelError, match="outside the arrays"):
        moves.launch((1,), (32,), (x, y[:64], i32(32)))
    with pytest.raises(KernelError, match="race on y"):
        moves.launch((2,), (32,), (x, y, i32(32)))


# Misread arguments


@pytest.mark.parametrize(
    "arguments",
    [
        (empty(32), 1),
        (empty(32), np.int64(1)),
        (empty(32).astype(np.float64), i32(1)),
        (empty(32),),
        (empty(64)[::2], i32(1)),
        ([0.0] * 32, i32(1)),
    ],
)
def test_argument_that_the_kernel_would_misread_is_refused(arguments):
    with pytest.raises(TypeError, match="shared_overrun"):
        kernel("shared_overrun").launch((1,), (32,), arguments)


def test_read_only_array_is_refused_where_the_kernel_writes():
    y = empty(64)
    y.flags.writeable = False
    with pytest.raises(TypeError, match="reverse: y: the array is read-only"):
        kernel("reverse").launch((1,), (64,), (normal(64), y))


# Compilation


def test_compile_error_shows_the_message_of_the_compiler():
    text = 'extern "C" __global__ void broken(\n    float* y) {  // (1)\n    y[0] = unknown;\n}\n'
    with pytest.raises(KernelError, match="broken_file.*\n(.*\n)*.*unknown"):
        Library(text, {}, "broken_file")


def test_change_of_an_included_file_compiles_again(tmp_path):
    def value():
        library = Library(kernels.splice(tmp_path / "constant.cu"), {}, "constant")
        library.kernel("constant").launch((1,), (1,), (y := empty(1),))
        return y[0]

    signature = 'extern "C" __global__ void constant(\n    float* y) {  // (1)\n'
    body = '#include "value.cuh"\n' + signature + "    y[0] = VALUE;\n}\n"
    (tmp_path / "constant.cu").write_text(body)
    for number in (3, 4):
        (tmp_path / "value.cuh").write_text(f"#pragma once\nconstexpr float VALUE = {number};\n")
        assert value() == number


def test_constants_do_not_reach_the_names_of_the_harness():
    x, y = normal(64), empty(64)
    names = {name: 7 for name in ("T", "mask", "line", "bits", "current", "threads", "letters")}
    kernel("reverse", **names).launch((1,), (64,), (x, y))
    np.testing.assert_array_equal(y, x[::-1])
