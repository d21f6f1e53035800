// kernels/matmul_stages.cu: c = scale * op(a) op(b), rung 9: copies run several steps ahead.
//
// Before (matmul_mma): a step's product takes less time than a copy from memory, so that every step
// waits for its copies; and at two barriers a step all warps wait for the slowest.
// Idea: STAGES buffers in turn: the copies of STAGES - 1 steps are under way. The barrier at which
// a step's tiles are complete also shows that all have read the step before, whose buffer is the
// one that is filled next: one barrier a step is enough.
// Left: where the depth runs fastest in memory, neighbouring threads copy to places that are a row
// of the tile apart, and those share banks of shared memory. Next: matmul_tf32.
//
// Arguments as in matmul_naive.cu; rounding and fragments as in matmul_mma.cu.
// Launcher: none; tests run it. Contract: kfcnet/ops/primitives.py. Test:
// tests/test_kernels_gemm.py.
#include "matmul_operand.cuh"
#include "tensor_core.cuh"

constexpr int WARPS_ACROSS = TILE_COLUMNS / WARP_COLUMNS;
constexpr int THREADS = TILE_ROWS / WARP_ROWS * WARPS_ACROSS * 32;
constexpr int ROW_TILES = WARP_ROWS / 16, COLUMN_TILES = WARP_COLUMNS / 8;

constexpr int LEFT_PITCH = TILE_ROWS + 8, RIGHT_PITCH = TILE_COLUMNS + 8;  // tiles are [k][side]
constexpr int BUFFER = TILE_DEPTH * (LEFT_PITCH + RIGHT_PITCH);

// Shared memory: STAGES * BUFFER floats.
extern "C" __global__ void __launch_bounds__(THREADS) matmul_stages(
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
            left.load_tile<TILE_ROWS, TILE_DEPTH, 1, LEFT_PITCH, THREADS>(
                tile, first_row, step * TILE_DEPTH);
            right.load_tile<TILE_COLUMNS, TILE_DEPTH, 1, RIGHT_PITCH, THREADS>(
                tile + TILE_DEPTH * LEFT_PITCH, first_column, step * TILE_DEPTH);
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
