// kernels/matmul_prefetch.cu: c = scale * op(a) op(b), rung 5: the next step is fetched ahead.
//
// Before (matmul_vector): load, wait, multiply, wait, one after the other; a load from memory takes
// hundreds of cycles, in which only other blocks can fill the multiprocessor.
// Idea: the loads of the next step are issued before this step is multiplied. Their results lie in
// registers until the tiles have been read, so that the multiply-adds hide the wait.
// Left: LEFT_LOADS + RIGHT_LOADS registers a thread, which the next step only passes through, and a
// second instruction for each of them, from register to tile. Next: matmul_async.
//
// Arguments as in matmul_naive.cu.
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

extern "C" __global__ void __launch_bounds__(THREADS) matmul_prefetch(
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
    float next_left[LEFT_LOADS], next_right[RIGHT_LOADS];
    const auto fetch_step = [&](int first) {
#pragma unroll
        for (int i = 0; i < LEFT_LOADS; ++i) {
            const int e = threadIdx.x + i * THREADS, row = e / TILE_DEPTH, k = e % TILE_DEPTH;
            next_left[i] = left.at(first_row + row, first + k);
        }
#pragma unroll
        for (int i = 0; i < RIGHT_LOADS; ++i) {
            const int e = threadIdx.x + i * THREADS;
            const int column = e % TILE_COLUMNS, k = e / TILE_COLUMNS;
            next_right[i] = right.at(first_column + column, first + k);
        }
    };
    const auto store_step = [&] {
#pragma unroll
        for (int i = 0; i < LEFT_LOADS; ++i) {
            const int e = threadIdx.x + i * THREADS, row = e / TILE_DEPTH, k = e % TILE_DEPTH;
            left_tile[k][row] = next_left[i];
        }
#pragma unroll
        for (int i = 0; i < RIGHT_LOADS; ++i) {
            const int e = threadIdx.x + i * THREADS;
            const int column = e % TILE_COLUMNS, k = e / TILE_COLUMNS;
            right_tile[k][column] = next_right[i];
        }
    };

    float sum[THREAD_ROWS][THREAD_COLUMNS] = {};
    fetch_step(0);
    for (int first = 0; first < depth; first += TILE_DEPTH) {
        store_step();
        __syncthreads();  // the tiles are complete
        if (first + TILE_DEPTH < depth) fetch_step(first + TILE_DEPTH);
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
