// kernels/matmul_tf32.cu: c = scale * op(a) op(b), rung 10: tiles in the order of memory.
//
// Before (matmul_stages): where the depth runs fastest in memory, copies of neighbours land in the
// same banks of shared memory.
// Idea: a tile keeps the order of memory, and is padded for the reads of the fragments.
// Left: a fragment is read by four-byte reads, and every lane copies four bytes at a time.
//
// Arguments as in matmul_naive.cu; the operands are rounded to TF32 (10-bit mantissa), the sums
// stay in fp32. A block makes TILE_ROWS x TILE_COLUMNS elements of c in steps of TILE_DEPTH, a warp
// WARP_ROWS x WARP_COLUMNS of them (multiples of 16 and of 8). STAGES buffers: the copies run
// STAGES - 1 steps ahead. A tile keeps the order of memory, padded so that the 32 lanes of a
// fragment read 32 different banks: 4g + t where the depth runs fastest, else 8t + g.
// Launcher: kfcnet/ops/cuda/matmul.py. Contract: kfcnet/ops/primitives.py. Test:
// tests/test_kernels_gemm.py.
// Operations 2*rows*columns*depth; bytes from memory 4*rows*columns*depth*(1/TILE_ROWS +
// 1/TILE_COLUMNS). A warp reads (WARP_ROWS + WARP_COLUMNS) * 32 bytes of shared memory for
// WARP_ROWS * WARP_COLUMNS * 16 operations: shared memory and mma.sync are the limits, close by.
#include "matmul_operand.cuh"
#include "tensor_core.cuh"

constexpr int WARPS_ACROSS = TILE_COLUMNS / WARP_COLUMNS;
constexpr int THREADS = TILE_ROWS / WARP_ROWS * WARPS_ACROSS * 32;
constexpr int ROW_TILES = WARP_ROWS / 16, COLUMN_TILES = WARP_COLUMNS / 8;

// Strides of an operand's tile with `side` rows or columns.
struct Layout {
    int side_stride, depth_stride, floats;
};
__device__ constexpr Layout layout(bool depth_fastest, int side) {
    return depth_fastest ? Layout{TILE_DEPTH + 4, 1, side * (TILE_DEPTH + 4)}
                         : Layout{1, side + 8, TILE_DEPTH * (side + 8)};
}
constexpr Layout LEFT = layout(!TRANSPOSE_A, TILE_ROWS), RIGHT = layout(TRANSPOSE_B, TILE_COLUMNS);
constexpr int BUFFER = LEFT.floats + RIGHT.floats;

// Shared memory: STAGES * BUFFER floats.
extern "C" __global__ void __launch_bounds__(THREADS) matmul_tf32(
    const float* __restrict__ a,  // (rows*depth + A_SHIFT*(depth if TRANSPOSE_A else rows))
    const float* __restrict__ b,  // (columns*depth + B_SHIFT*(columns if TRANSPOSE_B else depth))
    float* __restrict__ c,        // (rows, columns)
    int rows,
    int columns,
    int depth,
    float scale) {
    extern __shared__ __align__(16) float tiles[];
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const int warp_row = warp / WARPS_ACROSS * WARP_ROWS;
    const int warp_column = warp % WARPS_ACROSS * WARP_COLUMNS;
    const int first_row = blockIdx.y * TILE_ROWS, first_column = blockIdx.x * TILE_COLUMNS;
    const int steps = (depth + TILE_DEPTH - 1) / TILE_DEPTH;
    const Left left{a, rows, depth};
    const Right right{b, columns, depth};
    const auto load_step = [&](int step) {
        if (step < steps) {
            float* tile = tiles + step % STAGES * BUFFER;
            left.load_tile<TILE_ROWS, TILE_DEPTH, LEFT.side_stride, LEFT.depth_stride, THREADS>(
                tile, first_row, step * TILE_DEPTH);
            right.load_tile<TILE_COLUMNS, TILE_DEPTH, RIGHT.side_stride, RIGHT.depth_stride,
                            THREADS>(tile + LEFT.floats, first_column, step * TILE_DEPTH);
        }
        async_copy_commit();
    };

    float sum[ROW_TILES][COLUMN_TILES][4] = {};
    for (int step = 0; step < STAGES - 1; ++step) load_step(step);
    for (int step = 0; step < steps; ++step) {
        async_copy_wait<STAGES - 2>();
        __syncthreads();  // this step's tiles are complete, and the step before has been read
        load_step(step + STAGES - 1);
        __syncwarp();  // lanes may have parted over the column of ones; mma.sync needs all of them
        const float* left_tile = tiles + step % STAGES * BUFFER;
        const float* right_tile = left_tile + LEFT.floats;
        const auto left_at = [&](int row, int k) {
            return to_tf32(left_tile[(warp_row + row) * LEFT.side_stride + k * LEFT.depth_stride]);
        };
        const auto right_at = [&](int k, int column) {
            return to_tf32(right_tile[(warp_column + column) * RIGHT.side_stride +
                                      k * RIGHT.depth_stride]);
        };
#pragma unroll
        for (int k = 0; k < TILE_DEPTH; k += 8) {
            unsigned l[ROW_TILES][4], r[COLUMN_TILES][2];
            for (int i = 0; i < ROW_TILES; ++i)
                for (int e = 0; e < 4; ++e)
                    l[i][e] = left_at(16 * i + g + e % 2 * 8, k + t + e / 2 * 4);
            for (int j = 0; j < COLUMN_TILES; ++j)
                for (int e = 0; e < 2; ++e) r[j][e] = right_at(k + t + 4 * e, 8 * j + g);
#pragma unroll
            for (int i = 0; i < ROW_TILES; ++i)
#pragma unroll
                for (int j = 0; j < COLUMN_TILES; ++j)
                    mma_m16n8k8_tf32(sum[i][j], l[i], r[j], sum[i][j]);
        }
    }
    for (int i = 0; i < ROW_TILES; ++i)
        for (int j = 0; j < COLUMN_TILES; ++j)
            for (int e = 0; e < 4; ++e) {
                const int row = first_row + warp_row + 16 * i + g + e / 2 * 8;
                const int column = first_column + warp_column + 8 * j + 2 * t + e % 2;
                if (row < rows && column < columns) {
                    float& element = c[(long long)row * columns + column];
                    const float value = scale * sum[i][j][e];
                    element = ACCUMULATE ? element + value : value;
                }
            }
}
