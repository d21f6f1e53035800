// kernels/matmul_thread_tile.cu: c = scale * op(a) op(b), rung 3: a thread, a tile in registers.
//
// Before (matmul_tiled): a thread reads two floats of shared memory for every multiply-add.
// Idea: a thread makes THREAD_ROWS x THREAD_COLUMNS elements of c. For one k it reads THREAD_ROWS +
// THREAD_COLUMNS floats for THREAD_ROWS * THREAD_COLUMNS multiply-adds: 16 reads for 64 at 8 x 8.
// The same number of threads makes a larger tile, too: bytes from memory fall to
// 4*rows*columns*depth*(1/TILE_ROWS + 1/TILE_COLUMNS).
// Left: every read is an instruction that moves 4 bytes. Next: matmul_vector.
//
// Arguments as in matmul_naive.cu. A thread's elements are as far apart as there are threads across
// and down the tile: so neighbouring threads read neighbouring floats of shared memory, and write
// neighbours in c.
// Launcher: none; tests run it. Contract: kfcnet/ops/primitives.py. Test:
// tests/test_kernels_gemm.py.
#include "matmul_operand.cuh"

constexpr int LANES_DOWN = TILE_ROWS / THREAD_ROWS, LANES_ACROSS = TILE_COLUMNS / THREAD_COLUMNS;
constexpr int THREADS = LANES_DOWN * LANES_ACROSS;
constexpr int LEFT_LOADS = TILE_ROWS * TILE_DEPTH / THREADS;
constexpr int RIGHT_LOADS = TILE_COLUMNS * TILE_DEPTH / THREADS;
static_assert(LEFT_LOADS * THREADS == TILE_ROWS * TILE_DEPTH &&
              RIGHT_LOADS * THREADS == TILE_COLUMNS * TILE_DEPTH,
              "the threads share the tiles evenly");

extern "C" __global__ void __launch_bounds__(THREADS) matmul_thread_tile(
    const float* __restrict__ a,  // (rows*depth + A_SHIFT*(depth if TRANSPOSE_A else rows))
    const float* __restrict__ b,  // (columns*depth + B_SHIFT*(columns if TRANSPOSE_B else depth))
    float* __restrict__ c,        // (rows, columns)
    int rows,
    int columns,
    int depth,
    float scale) {
    __shared__ float left_tile[TILE_DEPTH][TILE_ROWS + 2];  // a warp writes columns: other banks
    __shared__ float right_tile[TILE_DEPTH][TILE_COLUMNS];
    const int tile_row = threadIdx.x / LANES_ACROSS, tile_column = threadIdx.x % LANES_ACROSS;
    const int first_row = blockIdx.y * TILE_ROWS, first_column = blockIdx.x * TILE_COLUMNS;
    const Left left{a, rows, depth};
    const Right right{b, columns, depth};

    float sum[THREAD_ROWS][THREAD_COLUMNS] = {};
    for (int first = 0; first < depth; first += TILE_DEPTH) {
#pragma unroll
        for (int i = 0; i < LEFT_LOADS; ++i) {
            const int e = threadIdx.x + i * THREADS, row = e / TILE_DEPTH, k = e % TILE_DEPTH;
            left_tile[k][row] = left.at(first_row + row, first + k);
        }
#pragma unroll
        for (int i = 0; i < RIGHT_LOADS; ++i) {
            const int e = threadIdx.x + i * THREADS;
            const int column = e % TILE_COLUMNS, k = e / TILE_COLUMNS;
            right_tile[k][column] = right.at(first_column + column, first + k);
        }
        __syncthreads();  // the tiles are complete
#pragma unroll
        for (int k = 0; k < TILE_DEPTH; ++k) {
            float l[THREAD_ROWS], r[THREAD_COLUMNS];
            for (int i = 0; i < THREAD_ROWS; ++i) l[i] = left_tile[k][tile_row + i * LANES_DOWN];
            for (int j = 0; j < THREAD_COLUMNS; ++j)
                r[j] = right_tile[k][tile_column + j * LANES_ACROSS];
#pragma unroll
            for (int i = 0; i < THREAD_ROWS; ++i)
#pragma unroll
                for (int j = 0; j < THREAD_COLUMNS; ++j) sum[i][j] = fmaf(l[i], r[j], sum[i][j]);
        }
        __syncthreads();  // all have read before the next step overwrites
    }
#pragma unroll
    for (int i = 0; i < THREAD_ROWS; ++i) {
        const int row = first_row + tile_row + i * LANES_DOWN;
#pragma unroll
        for (int j = 0; j < THREAD_COLUMNS; ++j) {
            const int column = first_column + tile_column + j * LANES_ACROSS;
            if (row < rows && column < columns)
                c[(long long)row * columns + column] = scale * sum[i][j];
        }
    }
}
