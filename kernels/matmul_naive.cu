// kernels/matmul_naive.cu: c = scale * op(a) op(b), first rung: a thread, an element of c.
//
// op(a) is (rows, depth), op(b) (depth, columns), c (rows, columns), all row-major; op transposes
// where TRANSPOSE_A or TRANSPOSE_B is 1. A_SHIFT and B_SHIFT: see matmul_operand.cuh. The ladder:
// matmul_naive, matmul_tiled, matmul_register, matmul_tf32; a diff of two files is the lesson.
// Launcher: none; tests run it. Contract: kfcnet/ops/primitives.py. Test:
// tests/test_kernels_gemm.py.
// Operations 2*rows*columns*depth. Every thread reads its row and its column from memory: 8 bytes
// for 2 operations, so the caches' bandwidth is the limit.
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
