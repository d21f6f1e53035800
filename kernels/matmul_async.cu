// kernels/matmul_async.cu: c = scale * op(a) op(b), rung 6: copies that take no registers.
//
// Before (matmul_prefetch): the next step passes through registers, by two instructions a float.
// Idea: cp.async copies from memory to shared memory by itself. It needs a place that nobody reads:
// the tiles are there twice, and steps take turns. A group of copies is committed, and waited for
// with all but the latest group, when its step begins.
// Left: a product of few elements and a long depth has few tiles, which leave most multiprocessors
// idle. Next: matmul_register.
//
// Arguments as in matmul_naive.cu; load_tile: matmul_operand.cuh.
// Launcher: none; tests run it. Contract: kfcnet/ops/primitives.py. Test:
// tests/test_kernels_gemm.py.
#include "matmul_operand.cuh"
#include "vector_load.cuh"

constexpr int LANES_ACROSS = TILE_COLUMNS / THREAD_COLUMNS;
constexpr int THREADS = TILE_ROWS / THREAD_ROWS * LANES_ACROSS;
constexpr int ROW_CHUNKS = THREAD_ROWS / 4, COLUMN_CHUNKS = THREAD_COLUMNS / 4;
constexpr int ROW_STRIDE = TILE_ROWS / ROW_CHUNKS, COLUMN_STRIDE = TILE_COLUMNS / COLUMN_CHUNKS;
constexpr int LEFT_PITCH = TILE_ROWS + 4, RIGHT_PITCH = TILE_COLUMNS + 4;  // tiles are [k][side]
constexpr int BUFFER = TILE_DEPTH * (LEFT_PITCH + RIGHT_PITCH);

// Shared memory: 2 * BUFFER floats.
extern "C" __global__ void __launch_bounds__(THREADS) matmul_async(
    const float* __restrict__ a,  // (rows*depth + A_SHIFT*(depth if TRANSPOSE_A else rows))
    const float* __restrict__ b,  // (columns*depth + B_SHIFT*(columns if TRANSPOSE_B else depth))
    float* __restrict__ c,        // (rows, columns)
    int rows,
    int columns,
    int depth,
    float scale) {
    extern __shared__ __align__(16) float tiles[];
    const int tile_row = threadIdx.x / LANES_ACROSS * 4;
    const int tile_column = threadIdx.x % LANES_ACROSS * 4;
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

    float sum[THREAD_ROWS][THREAD_COLUMNS] = {};
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
#pragma unroll
        for (int k = 0; k < TILE_DEPTH; ++k) {
            Vector<float, 4> l[ROW_CHUNKS], r[COLUMN_CHUNKS];
            for (int i = 0; i < ROW_CHUNKS; ++i)
                l[i] = load<4>(left_tile + k * LEFT_PITCH + i * ROW_STRIDE + tile_row);
            for (int j = 0; j < COLUMN_CHUNKS; ++j)
                r[j] = load<4>(right_tile + k * RIGHT_PITCH + j * COLUMN_STRIDE + tile_column);
#pragma unroll
            for (int i = 0; i < THREAD_ROWS; ++i)
#pragma unroll
                for (int j = 0; j < THREAD_COLUMNS; ++j)
                    sum[i][j] = fmaf(l[i / 4][i % 4], r[j / 4][j % 4], sum[i][j]);
        }
        __syncthreads();  // all have read before the step after next overwrites
    }
#pragma unroll
    for (int i = 0; i < THREAD_ROWS; ++i) {
        const int row = first_row + i / 4 * ROW_STRIDE + tile_row + i % 4;
#pragma unroll
        for (int j = 0; j < THREAD_COLUMNS; ++j) {
            const int column = first_column + j / 4 * COLUMN_STRIDE + tile_column + j % 4;
            if (row < rows && column < columns)
                c[(long long)row * columns + column] = scale * sum[i][j];
        }
    }
}
