// kernels/conv_max_pool.cu: a convolution of few maps, the maximum pool and the ReLU behind it.
//
// x (M, HEIGHT, WIDTH, IN_MAPS), weights packed with FRAGMENTS 1 -> y, argmax (M, POOLED_HEIGHT,
// POOLED_WIDTH, OUT_MAPS): bit for bit what max_pool.cu with RELU 1 makes of what
// conv_forward_tf32.cu makes of them, but that argmax is POOL_SIZE**2, beyond the window, where the
// ReLU cuts: the passes back then need argmax alone. tangent: of a convolution along other weights,
// at the maxima.
//
// What the convolution makes, POOL_STRIDE**2 times as much as the pool, stays in shared memory;
// where tiles of windows overlap it is made twice. A patch is short: all weights lie in shared
// memory at once, without a pipeline.
// One block: POOL_ROWS x POOL_COLUMNS pooled pixels of TILE_MAPS maps (blockIdx.y). One warp: 32 of
// the TILE_HEIGHT x TILE_WIDTH positions under them, all maps, by mma.sync m16n8k8; then a thread
// pools four maps of a pixel, or takes the tangent of one.
// Launcher: kfcnet/ops/cuda/pooled_convolution.py. Contract: kfcnet/ops/primitives.py. Tests:
// tests/test_conv_max_pool.py.
// Operations 2*M*T*OUT_MAPS*P and the overlap; bytes 4*x + 5*y; limited by mma.sync and memory.
#include "conv_packed.cuh"
#include "conv_windows.cuh"
#include "tensor_core.cuh"

static_assert(FEW_MAPS, "a segment is a row of the kernel");
static_assert(PIXELS % 32 == 0 && TILE_MAPS % 16 == 0, "the warps cover the tile");
constexpr int THREADS = PIXELS, ROW_TILES = 2, MAP_PAIRS = TILE_MAPS / 16;
constexpr int PITCH = IN_MAPS, OUT_PITCH = TILE_MAPS + 8;  // 8g + 2t: 16 lanes meet 32 banks
constexpr int POOL_TILES_DOWN = (POOLED_HEIGHT + POOL_ROWS - 1) / POOL_ROWS;
constexpr int POOL_TILES_ACROSS = (POOLED_WIDTH + POOL_COLUMNS - 1) / POOL_COLUMNS;

// The positions under a tile of pooled pixels: all of their windows, as far as these lie in the
// image.
__device__ __forceinline__ Tile pool_tile_at(int index) {
    const int line = index / POOL_TILES_ACROSS;
    return {line / POOL_TILES_DOWN, line % POOL_TILES_DOWN * POOL_ROWS * POOL_STRIDE,
            index % POOL_TILES_ACROSS * POOL_COLUMNS * POOL_STRIDE};
}

// Leave the convolution of a tile in shared memory: outputs[position * OUT_PITCH + map].
__device__ __forceinline__ void convolve(const float* x, const float* packed, int M,
                                         const Tile& tile, float* shared) {
    const int warp_pixel = threadIdx.x / 32 * 16 * ROW_TILES, lane = threadIdx.x % 32;
    const int g = lane / 4, t = lane % 4;
    float* const weights = shared + input_floats<PITCH>();
    load_inputs<PITCH, THREADS>(shared, x, M, tile, 0);
    for (int i = threadIdx.x * 4; i < SLABS; i += THREADS * 4)
        async_copy_16(weights + i, slabs_of(packed, 0) + i, true);
    async_copy_commit();
    async_copy_wait<0>();
    change_inputs<PITCH, THREADS>(
        shared, [](float value) { return __uint_as_float(to_tf32(value)); });
    __syncthreads();  // inputs and weights are complete

    const float* patch[ROW_TILES][2];
    for (int i = 0; i < ROW_TILES; ++i)
        for (int half = 0; half < 2; ++half)
            patch[i][half] =
                shared + patch_offset<PITCH>(warp_pixel + 16 * i + 8 * half + g) + t;
    const float* slab = weights + lane * 4;
    float sum[ROW_TILES][2 * MAP_PAIRS][4] = {};
#pragma unroll 1
    for (int segment = 0; segment < SEGMENTS; ++segment, slab += SLAB) {
#pragma unroll
        for (int k = 0; k < SEGMENT_DEPTH; k += 8) {
            unsigned left[ROW_TILES][4], right[2 * MAP_PAIRS][2];
            for (int i = 0; i < ROW_TILES; ++i)
                for (int e = 0; e < 4; ++e)
                    left[i][e] = __float_as_uint(patch[i][e % 2][k + e / 2 * 4]);
            for (int j = 0; j < MAP_PAIRS; ++j) {
                const Vector<float, 4> pair = load<4>(slab + k * TILE_MAPS + j * 128);
                for (int e = 0; e < 4; ++e)
                    right[2 * j + e / 2][e % 2] = __float_as_uint(pair[e]);
            }
#pragma unroll
            for (int i = 0; i < ROW_TILES; ++i)
#pragma unroll
                for (int j = 0; j < 2 * MAP_PAIRS; ++j)
                    mma_m16n8k8_tf32(sum[i][j], left[i], right[j], sum[i][j]);
        }
        for (int i = 0; i < ROW_TILES; ++i)
            for (int half = 0; half < 2; ++half) patch[i][half] += segment_offset<PITCH>(1);
    }
    __syncthreads();  // all have read inputs and weights before outputs overwrite them

    for (int j = 0; j < 2 * MAP_PAIRS; ++j) {
        const int map = 8 * j + 2 * t;
        const Vector<float, 2> bias = load<2>(packed + blockIdx.y * TILE_MAPS + map);
        for (int i = 0; i < ROW_TILES; ++i)
            for (int half = 0; half < 2; ++half) {
                Vector<float, 2> values;
                for (int e = 0; e < 2; ++e) values[e] = sum[i][j][2 * half + e] + bias[e];
                store(shared + (warp_pixel + 16 * i + 8 * half + g) * OUT_PITCH + map, values);
            }
    }
    __syncthreads();  // the convolution is complete before windows look into it
}

// pool(row, column, offset, at) for the pooled pixels of this thread, `lanes` maps of each: their
// place in the pooled image, in the array of those, and at(row, column) of the convolution in
// shared memory.
template <int lanes, class Pool>
__device__ __forceinline__ void for_all_windows(const Tile& tile, const float* shared, Pool pool) {
    constexpr int GROUPS = TILE_MAPS / lanes;
    for (int i = threadIdx.x; i < POOL_ROWS * POOL_COLUMNS * GROUPS; i += THREADS) {
        const int pixel = i / GROUPS, map = i % GROUPS * lanes;
        const int row = tile.row / POOL_STRIDE + pixel / POOL_COLUMNS;
        const int column = tile.column / POOL_STRIDE + pixel % POOL_COLUMNS;
        const int first_map = blockIdx.y * TILE_MAPS + map;
        if (row >= POOLED_HEIGHT || column >= POOLED_WIDTH || first_map >= OUT_MAPS) continue;
        const int offset =
            ((tile.image * POOLED_HEIGHT + row) * POOLED_WIDTH + column) * OUT_MAPS + first_map;
        pool(row, column, offset, [&](int r, int c) {
            return shared + ((r - tile.row) * TILE_WIDTH + c - tile.column) * OUT_PITCH + map;
        });
    }
}

// Shared memory: max(input_floats<PITCH>() + SLABS, PIXELS * OUT_PITCH) floats.
extern "C" __global__ void __launch_bounds__(THREADS) conv_max_pool(
    const float* __restrict__ x,         // aligned (M, HEIGHT, WIDTH, IN_MAPS)
    const float* __restrict__ packed,    // aligned (PACKED_SIZE)
    float* __restrict__ y,               // aligned (M, POOLED_HEIGHT, POOLED_WIDTH, OUT_MAPS)
    unsigned char* __restrict__ argmax,  // aligned (M, POOLED_HEIGHT, POOLED_WIDTH, OUT_MAPS)
    int M) {
    extern __shared__ __align__(16) float shared[];
    const Tile tile = pool_tile_at(blockIdx.x);
    convolve(x, packed, M, tile, shared);
    for_all_windows<4>(tile, shared, [&](int row, int column, int offset, auto at) {
        Offsets<4> where = {};
        Vector<float, 4> best = Windows::maximum(
            row, column, where, [&](int r, int c) { return load<4>(at(r, c)); });
        for (int e = 0; e < 4; ++e) {
            if (!(best[e] > 0.0f)) where[e] = POOL_SIZE * POOL_SIZE;
            if (best[e] < 0.0f) best[e] = 0.0f;
        }
        store(y + offset, best);
        store(argmax + offset, where);
    });
}

extern "C" __global__ void __launch_bounds__(THREADS) conv_max_pool_tangent(
    const float* __restrict__ x,               // aligned (M, HEIGHT, WIDTH, IN_MAPS)
    const float* __restrict__ packed,          // aligned (PACKED_SIZE)
    const unsigned char* __restrict__ argmax,  // (M, POOLED_HEIGHT, POOLED_WIDTH, OUT_MAPS)
    float* __restrict__ ry,                    // (M, POOLED_HEIGHT, POOLED_WIDTH, OUT_MAPS)
    int M) {
    extern __shared__ __align__(16) float shared[];
    const Tile tile = pool_tile_at(blockIdx.x);
    convolve(x, packed, M, tile, shared);
    // A map a thread: neighbours meet different banks.
    for_all_windows<1>(tile, shared, [&](int row, int column, int offset, auto at) {
        const int where = argmax[offset];
        const bool is_cut = where >= POOL_SIZE * POOL_SIZE;
        ry[offset] = is_cut ? 0.0f
                            : *at(row * POOL_STRIDE + where / POOL_SIZE,
                                  column * POOL_STRIDE + where % POOL_SIZE);
    });
}
