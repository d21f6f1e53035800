// kernels/matmul_mma.cu: c = scale * op(a) op(b), rung 8: tensor cores.
//
// Before (matmul_register): a lane issues an instruction for every multiply-add.
// Idea: mma.sync multiplies a 16 x 8 by an 8 x 8 tile: 1024 multiply-adds by one instruction of a
// warp, 32 of a lane. A warp makes WARP_ROWS x WARP_COLUMNS elements of c (multiples of 16 and of
// 8). Which elements of a tile a lane holds, its fragment, is fixed: see tensor_core.cuh. The
// operands are rounded to TF32 (10-bit mantissa) as they are read, the sums stay in fp32. Rows of a
// tile are padded by eight: the lanes of a fragment read 32 different banks, 8t + g.
// Left: a step's product takes less time than a copy from memory. Next: matmul_stages.
//
// Arguments as in matmul_naive.cu; compute capability 8.0 and up.
// Launcher: none; tests run it. Contract: kfcnet/ops/primitives.py. Test:
// tests/test_kernels_gemm.py.
#include "matmul_operand.cuh"
#include "tensor_core.cuh"

constexpr int WARPS_ACROSS = TILE_COLUMNS / WARP_COLUMNS;
constexpr int THREADS = TILE_ROWS / WARP_ROWS * WARPS_ACROSS * 32;
constexpr int ROW_TILES = WARP_ROWS / 16, COLUMN_TILES = WARP_COLUMNS / 8;

constexpr int LEFT_PITCH = TILE_ROWS + 8, RIGHT_PITCH = TILE_COLUMNS + 8;  // tiles are [k][side]
constexpr int BUFFER = TILE_DEPTH * (LEFT_PITCH + RIGHT_PITCH);

// Shared memory: 2 * BUFFER floats.
extern "C" __global__ void __launch_bounds__(THREADS) matmul_mma(
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
    const Left left{a, rows, depth};
    const Right right{b, columns, depth};
    const auto load_step = [&](int step) {
        float* left_tile = tiles + step % 2 * BUFFER;
        left.load_tile<TILE_ROWS, TILE_DEPTH, 1, LEFT_PITCH, THREADS>(
            left_tile, first_row, step * TILE_DEPTH);
        right.load_tile<TILE_COLUMNS, TILE_DEPTH, 1, RIGHT_PITCH, THREADS>(
            left_tile + TILE_DEPTH * LEFT_PITCH, first_column, step * TILE_DEPTH);
    };

    float sum[ROW_TILES][COLUMN_TILES][4] = {};
    const int steps = (depth + TILE_DEPTH - 1) / TILE_DEPTH;
    load_step(0);
    async_copy_commit();
    for (int step = 0; step < steps; ++step) {
        if (step + 1 < steps) load_step(step + 1);
        async_copy_commit();
        async_copy_wait<1>();
        __syncthreads();  // this step's tiles are complete
        const float* left_tile = tiles + step % 2 * BUFFER;
        const float* right_tile = left_tile + TILE_DEPTH * LEFT_PITCH;
        const auto left_at = [&](int row, int k) {
            return to_tf32(left_tile[k * LEFT_PITCH + warp_row + row]);
        };
        const auto right_at = [&](int k, int column) {
            return to_tf32(right_tile[k * RIGHT_PITCH + warp_column + column]);
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
        __syncthreads();  // all have read before the step after next overwrites
    }
    for (int i = 0; i < ROW_TILES; ++i)
        for (int j = 0; j < COLUMN_TILES; ++j)
            for (int e = 0; e < 4; ++e) {
                const int row = first_row + warp_row + 16 * i + g + e / 2 * 8;
                const int column = first_column + warp_column + 8 * j + 2 * t + e % 2;
                if (row < rows && column < columns)
                    c[(long long)row * columns + column] = scale * sum[i][j][e];
            }
}
