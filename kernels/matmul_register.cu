// kernels/matmul_register.cu: c = scale * op(a) op(b), rung 7: groups of threads share the depth.
//
// Before (matmul_async): a product of few elements and a long depth has few tiles, which leave most
// multiprocessors idle.
// Idea: a small tile, whose block has DEPTH_GROUPS groups of threads: each takes its part of every
// step's depth. With one group this is matmul_async.
// Left: a lane issues an instruction for every multiply-add. Next: matmul_mma.
//
// Arguments as in matmul_naive.cu. ACCUMULATE 1: c += the product. A block makes TILE_ROWS x
// TILE_COLUMNS elements of c in steps of TILE_DEPTH; a thread holds THREAD_ROWS x THREAD_COLUMNS of
// them (multiples of four, in chunks of four neighbours), so that two 16-byte reads of shared
// memory serve 16 multiply-adds and more. The next step is copied while this one is multiplied (two
// buffers). The sums of the groups meet in shared memory in a fixed order.
// Launcher: kfcnet/ops/cuda/matmul.py. Contract: kfcnet/ops/primitives.py. Test:
// tests/test_kernels_gemm.py.
// Operations 2*rows*columns*depth; bytes from memory 4*rows*columns*depth*(1/TILE_ROWS +
// 1/TILE_COLUMNS); limited by fp32 arithmetic for large products, by latency for small ones.
#include "matmul_operand.cuh"
#include "vector_load.cuh"
#include "warp_groups.cuh"

constexpr int LANES_ACROSS = TILE_COLUMNS / THREAD_COLUMNS;
constexpr int GROUP_THREADS = TILE_ROWS / THREAD_ROWS * LANES_ACROSS;
constexpr int THREADS = GROUP_THREADS * DEPTH_GROUPS;
constexpr int GROUP_DEPTH = TILE_DEPTH / DEPTH_GROUPS;
constexpr int ROW_CHUNKS = THREAD_ROWS / 4, COLUMN_CHUNKS = THREAD_COLUMNS / 4;
constexpr int ROW_STRIDE = TILE_ROWS / ROW_CHUNKS, COLUMN_STRIDE = TILE_COLUMNS / COLUMN_CHUNKS;
constexpr int LEFT_PITCH = TILE_ROWS + 4, RIGHT_PITCH = TILE_COLUMNS + 4;  // tiles are [k][side]
constexpr int BUFFER = TILE_DEPTH * (LEFT_PITCH + RIGHT_PITCH);

// Shared memory: max(2 * BUFFER, (DEPTH_GROUPS > 1) * TILE_ROWS * TILE_COLUMNS) floats.
// 128 registers a thread: told nothing, older compilers save registers for more blocks, and spill.
extern "C" __global__ void __launch_bounds__(THREADS, 512 / THREADS) matmul_register(
    const float* __restrict__ a,  // (rows*depth + A_SHIFT*(depth if TRANSPOSE_A else rows))
    const float* __restrict__ b,  // (columns*depth + B_SHIFT*(columns if TRANSPOSE_B else depth))
    float* __restrict__ c,        // (rows, columns)
    int rows,
    int columns,
    int depth,
    float scale) {
    extern __shared__ __align__(16) float tiles[];
    const int group = threadIdx.x / GROUP_THREADS, place = threadIdx.x % GROUP_THREADS;
    const int tile_row = place / LANES_ACROSS * 4, tile_column = place % LANES_ACROSS * 4;
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

    float sum[THREAD_ROWS * THREAD_COLUMNS] = {};
    const int steps = (depth + TILE_DEPTH - 1) / TILE_DEPTH;
    load_step(0);
    async_copy_commit();
    for (int step = 0; step < steps; ++step) {
        if (step + 1 < steps) load_step(step + 1);
        async_copy_commit();
        async_copy_wait<1>();
        __syncthreads();  // this step's tiles are complete
        const float* left_tile = tiles + step % 2 * BUFFER + group * GROUP_DEPTH * LEFT_PITCH;
        const float* right_tile =
            tiles + step % 2 * BUFFER + TILE_DEPTH * LEFT_PITCH + group * GROUP_DEPTH * RIGHT_PITCH;
#pragma unroll
        for (int k = 0; k < GROUP_DEPTH; ++k) {
            Vector<float, 4> l[ROW_CHUNKS], r[COLUMN_CHUNKS];
            for (int i = 0; i < ROW_CHUNKS; ++i)
                l[i] = load<4>(left_tile + k * LEFT_PITCH + i * ROW_STRIDE + tile_row);
            for (int j = 0; j < COLUMN_CHUNKS; ++j)
                r[j] = load<4>(right_tile + k * RIGHT_PITCH + j * COLUMN_STRIDE + tile_column);
#pragma unroll
            for (int i = 0; i < THREAD_ROWS; ++i)
#pragma unroll
                for (int j = 0; j < THREAD_COLUMNS; ++j) {
                    float& s = sum[i * THREAD_COLUMNS + j];
                    s = fmaf(l[i / 4][i % 4], r[j / 4][j % 4], s);
                }
        }
        __syncthreads();  // all have read before the step after next overwrites
    }
    sum_groups<THREAD_ROWS * THREAD_COLUMNS, DEPTH_GROUPS, GROUP_THREADS>(sum, tiles, group, place);
    if (group > 0) return;
#pragma unroll
    for (int i = 0; i < THREAD_ROWS; ++i) {
        const int row = first_row + i / 4 * ROW_STRIDE + tile_row + i % 4;
#pragma unroll
        for (int j = 0; j < THREAD_COLUMNS; ++j) {
            const int column = first_column + j / 4 * COLUMN_STRIDE + tile_column + j % 4;
            if (row < rows && column < columns) {
                float& element = c[(long long)row * columns + column];
                const float value = scale * sum[i * THREAD_COLUMNS + j];
                element = ACCUMULATE ? element + value : value;
            }
        }
    }
}
