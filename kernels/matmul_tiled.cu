// kernels/matmul_tiled.cu: c = scale * op(a) op(b), rung 2: tiles in shared memory.
//
// Before (matmul_naive): 8 bytes from memory for every multiply-add.
// Idea: a block of TILE x TILE threads makes a tile of c. It copies a step of TILE along the depth
// to shared memory, each thread one element of either operand, and uses every element TILE times:
// bytes from memory fall to 8*rows*columns*depth/TILE.
// Left: two floats out of shared memory for every multiply-add. Next: matmul_thread_tile.
//
// Arguments as in matmul_naive.cu.
// Launcher: none; tests run it. Contract: kfcnet/ops/primitives.py. Test:
// tests/test_kernels_gemm.py.
#include "matmul_operand.cuh"

extern "C" __global__ void __launch_bounds__(TILE * TILE) matmul_tiled(
    const float* __restrict__ a,  // (rows*depth + A_SHIFT*(depth if TRANSPOSE_A else rows))
    const float* __restrict__ b,  // (columns*depth + B_SHIFT*(columns if TRANSPOSE_B else depth))
    float* __restrict__ c,        // (rows, columns)
    int rows,
    int columns,
    int depth,
    float scale) {
    __shared__ float left_tile[TILE][TILE];   // [row][k]
    __shared__ float right_tile[TILE][TILE];  // [k][column]
    const int tx = threadIdx.x, ty = threadIdx.y;
    const int row = blockIdx.y * TILE + ty, column = blockIdx.x * TILE + tx;
    const Left left{a, rows, depth};
    const Right right{b, columns, depth};
    float sum = 0.0f;
    for (int first = 0; first < depth; first += TILE) {
        left_tile[ty][tx] = left.at(row, first + tx);
        right_tile[ty][tx] = right.at(column, first + ty);
        __syncthreads();  // the tiles are complete
#pragma unroll
        for (int k = 0; k < TILE; ++k) sum = fmaf(left_tile[ty][k], right_tile[k][tx], sum);
        __syncthreads();  // all have read before the next step overwrites
    }
    if (row < rows && column < columns) c[(long long)row * columns + column] = scale * sum;
}
