// kernels/matmul_vector.cu: c = scale * op(a) op(b), rung 4: reads of 16 bytes.
//
// Before (matmul_thread_tile): THREAD_ROWS + THREAD_COLUMNS reads of 4 bytes for one k.
// Idea: a thread's rows and columns come in chunks of four neighbours, which lie side by side in a
// tile: one instruction reads four floats. The multiply-adds stay, a quarter of the reads is left.
// Left: while a block waits for a step's elements it does not multiply. Next: matmul_prefetch.
//
// Arguments as in matmul_naive.cu. The chunks of a thread are far apart, those of neighbouring
// threads side by side: the lanes of a warp read whole rows of shared memory. Tiles are [k][side],
// padded by four, so that every chunk starts at a multiple of 16 bytes.
// Launcher: none; tests run it. Contract: kfcnet/ops/primitives.py. Test:
// tests/test_kernels_gemm.py.
#include "matmul_operand.cuh"
#include "vector_load.cuh"

constexpr int LANES_ACROSS = TILE_COLUMNS / THREAD_COLUMNS;
constexpr int THREADS = TILE_ROWS / THREAD_ROWS * LANES_ACROSS;
constexpr int ROW_CHUNKS = THREAD_ROWS / 4, COLUMN_CHUNKS = THREAD_COLUMNS / 4;
constexpr int ROW_STRIDE = TILE_ROWS / ROW_CHUNKS, COLUMN_STRIDE = TILE_COLUMNS / COLUMN_CHUNKS;
constexpr int LEFT_LOADS = TILE_ROWS * TILE_DEPTH / THREADS;
constexpr int RIGHT_LOADS = TILE_COLUMNS * TILE_DEPTH / THREADS;
static_assert(LEFT_LOADS * THREADS == TILE_ROWS * TILE_DEPTH &&
              RIGHT_LOADS * THREADS == TILE_COLUMNS * TILE_DEPTH,
              "the threads share the tiles evenly");

extern "C" __global__ void __launch_bounds__(THREADS) matmul_vector(
    const float* __restrict__ a,  // (rows*depth + A_SHIFT*(depth if TRANSPOSE_A else rows))
    const float* __restrict__ b,  // (columns*depth + B_SHIFT*(columns if TRANSPOSE_B else depth))
    float* __restrict__ c,        // (rows, columns)
    int rows,
    int columns,
    int depth,
    float scale) {
    __shared__ __align__(16) float left_tile[TILE_DEPTH][TILE_ROWS + 4];
    __shared__ __align__(16) float right_tile[TILE_DEPTH][TILE_COLUMNS + 4];
    const int tile_row = threadIdx.x / LANES_ACROSS * 4;
    const int tile_column = threadIdx.x % LANES_ACROSS * 4;
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
            Vector<float, 4> l[ROW_CHUNKS], r[COLUMN_CHUNKS];
            for (int i = 0; i < ROW_CHUNKS; ++i)
                l[i] = load<4>(&left_tile[k][tile_row + i * ROW_STRIDE]);
            for (int j = 0; j < COLUMN_CHUNKS; ++j)
                r[j] = load<4>(&right_tile[k][tile_column + j * COLUMN_STRIDE]);
#pragma unroll
            for (int i = 0; i < THREAD_ROWS; ++i)
#pragma unroll
                for (int j = 0; j < THREAD_COLUMNS; ++j)
                    sum[i][j] = fmaf(l[i / 4][i % 4], r[j / 4][j % 4], sum[i][j]);
        }
        __syncthreads();  // all have read before the next step overwrites
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
