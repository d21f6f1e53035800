"""The kernels that are matrix products: products, convolutions, patches, factors.

Every launch runs under several orders of the block's threads, and the results must be equal bit for
bit. References are in float64, on small asymmetric shapes that no tile divides. The constants of a
launch are those of a small machine: several tiles, buffers and groups even for these shapes.
"""

import numpy as np
import pytest
from checks import assert_close
from cuda_on_cpu import launch_in_all_orders, missing

pytestmark = pytest.mark.skipif(bool(missing()), reason=str(missing()))

TF32 = 2e-3  # two operands rounded to 11 bits, sums of a few hundred terms
FP32 = 2e-5


def empty(*shape):
    """Memory whose bytes no kernel writes by chance: what stays unwritten fails the comparison."""
    return np.full(shape, np.nan, np.float32)


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def ceil(count, size):
    return -(-count // size)


# Matrix products

MATMULS = {
    "naive": {},
    "tiled": dict(TILE=8),
    "register": dict(TILE_ROWS=16, TILE_COLUMNS=32, TILE_DEPTH=8, THREAD_ROWS=4, THREAD_COLUMNS=8,
                     DEPTH_GROUPS=2),
    "tf32": dict(TILE_ROWS=32, TILE_COLUMNS=16, TILE_DEPTH=8, WARP_ROWS=16, WARP_COLUMNS=16,
                 STAGES=3),
}


def matmul_shared(rung, macros):
    """Floats of dynamic shared memory that a rung needs."""
    rows, columns, depth = (macros.get(f"TILE_{side}") for side in ("ROWS", "COLUMNS", "DEPTH"))
    if rung == "register":
        tile = rows * columns if macros["DEPTH_GROUPS"] > 1 else 0
        return max(2 * depth * (rows + columns + 8), tile)
    if rung == "tf32":
        left = depth * (rows + 8) if macros["TRANSPOSE_A"] else rows * (depth + 4)
        right = columns * (depth + 4) if macros["TRANSPOSE_B"] else depth * (columns + 8)
        return macros["STAGES"] * (left + right)
    return 0


def matmul(rung, a, b, size, scale=1.0, transpose_a=0, transpose_b=0, a_shift=0, b_shift=0):
    """c = scale * op(a) op(b) by one rung of the ladder; size is (rows, columns, depth)."""
    rows, columns, depth = size
    macros = MATMULS[rung] | dict(TRANSPOSE_A=transpose_a, TRANSPOSE_B=transpose_b,
                                  A_SHIFT=a_shift, B_SHIFT=b_shift)
    tile = {"naive": (8, 4), "tiled": (8, 8)}.get(
        rung, (macros.get("TILE_COLUMNS"), macros.get("TILE_ROWS")))
    block = {"naive": (8, 4), "tiled": (8, 8), "register": (32,), "tf32": (64,)}[rung]
    c = empty(rows, columns)
    launch_in_all_orders(f"matmul_{rung}", f"matmul_{rung}",
                         (ceil(columns, tile[0]), ceil(rows, tile[1])), block,
                         [a, b, c, rows, columns, depth, scale], macros,
                         4 * matmul_shared(rung, macros))
    return c


@pytest.mark.parametrize("transpose_a, transpose_b", [(0, 0), (0, 1), (1, 0)])
@pytest.mark.parametrize("rung", MATMULS)
def test_matmul_multiplies_any_shape_and_transposes(rng, rung, transpose_a, transpose_b):
    for size in [(37, 45, 29), (1, 3, 5), (16, 32, 16)]:
        a, b = normal(rng, size[0], size[2]), normal(rng, size[2], size[1])
        expected = -0.5 * a.astype(np.float64) @ b
        stored = [np.ascontiguousarray(m.T) if transposed else m
                  for m, transposed in ((a, transpose_a), (b, transpose_b))]
        c = matmul(rung, *stored, size, -0.5, transpose_a, transpose_b)
        assert_close(c, expected, TF32 if rung == "tf32" else FP32)


@pytest.mark.parametrize("rung", MATMULS)
def test_matmul_does_the_dense_layer_with_its_homogeneous_column(rng, rung):
    x, weight, dy = normal(rng, 11, 21), normal(rng, 10, 22), normal(rng, 11, 10)
    homogeneous = np.hstack([np.ones((11, 1)), x])
    tolerance = TF32 if rung == "tf32" else FP32
    y = matmul(rung, x, weight, (11, 10, 22), transpose_b=1, a_shift=-1)
    assert_close(y, homogeneous @ weight.T, tolerance)
    without_bias = matmul(rung, x, weight, (11, 10, 21), transpose_b=1, b_shift=1)
    assert_close(without_bias, x.astype(np.float64) @ weight[:, 1:].T, tolerance)
    dx = matmul(rung, dy, weight, (11, 21, 10), b_shift=1)
    assert_close(dx, dy.astype(np.float64) @ weight[:, 1:], tolerance)
    gradient = matmul(rung, dy, x, (10, 22, 11), 0.25, transpose_a=1, b_shift=-1)
    assert_close(gradient, 0.25 * dy.T @ homogeneous, tolerance)


def test_tf32_products_are_rounded_once_an_operand(rng):
    size = (16, 16, 64)
    a, b = normal(rng, 16, 64), normal(rng, 64, 16)
    error = np.abs(matmul("tf32", a, b, size) - a.astype(np.float64) @ b)
    bound = 2 * 2.0**-11 * (np.abs(a) @ np.abs(b))
    assert (error < 1.01 * bound).all() and error.max() > 1e-5
