// kernels/matmul_naive.cu: c = scale * op(a) op(b), rung 1: a thread, an element of c.
//
// Idea: every element of c is a sum of its own, so that all of them can be made at once. A warp
// takes 32 neighbours of a row: it reads 32 neighbours of b together, and one element of a.
// Operations 2*rows*columns*depth.
// Left: a thread reads its whole row of a and column of b from memory, 8 bytes for a multiply-add;
// its neighbours read nearly the same. Next: matmul_tiled.
//
// op(a) is (rows, depth), op(b) (depth, columns), c (rows, columns), all row-major; op transposes
// where TRANSPOSE_A or TRANSPOSE_B is 1. A_SHIFT and B_SHIFT: see matmul_operand.cuh.
// Launcher: none; tests run it. Contract: kfcnet/ops/primitives.py. Test:
// tests/test_kernels_gemm.py.
#include "matmul_operand.cuh"

extern "C" __global__ void matmul_naive(
    const float* __restrict__ a,  // (rows*depth + A_SHIFT*(depth if TRANSPOSE_A else rows))
    const float* __restrict__ b,  // (columns*depth + B_SHIFT*(columns if TRANSPOSE_B else depth))
    float* __restrict__ c,        // (rows, columns)
    int rows,
    int columns,
    int depth,
    float scale) {
    const int column = blockIdx.x * blockDim.x + threadIdx.x;
    const int row = blockIdx.y * blockDim.y + threadIdx.y;
    if (row >= rows || column >= columns) return;
    const Left left{a, rows, depth};
    const Right right{b, columns, depth};
    float sum = 0.0f;
    for (int k = 0; k < depth; ++k) sum = fmaf(left.at(row, k), right.at(column, k), sum);
    c[(long long)row * columns + column] = scale * sum;
}
