// kernels/conv_backward_weights_tf32.cu: dy^T [[x]]_H in slices of the batch, on tensor cores.
//
// Arguments as in conv_backward_weights_register.cu; x and dy are rounded to TF32 as they arrive in
// shared memory, the sums stay in fp32. POOL_SIZE > 0: dy (M, POOLED_HEIGHT, POOLED_WIDTH, OUT_MAPS)
// are the derivatives of what conv_max_pool.cu pooled, which argmax, four offsets a float, spreads
// (conv_pooled.cuh); otherwise POOLED_HEIGHT and POOLED_WIDTH are OUT_HEIGHT and OUT_WIDTH.
//
// A warp makes 16*MAP_TILES maps of dy times COLUMN_TILES times eight columns of the patch with
// mma.sync m16n8k8, whose depth is eight neighbouring positions (TILE_WIDTH is a multiple of 8).
// The block: a slice of the tiles (blockIdx.x), the maps (y), a chunk with all or a part of its
// columns (z); WARPS_COLUMNS warps side by side, WARPS_DEPTH that take turns with the positions.
// Launcher: kfcnet/ops/cuda/convolution.py. Contract: kfcnet/ops/primitives.py. Test:
// tests/test_kernels_gemm.py.
// Operations 2*M*T*OUT_MAPS*P; bytes as in conv_backward_weights_register.cu. Eight positions take
// 4*MAP_TILES + 2*COLUMN_TILES reads of shared memory for MAP_TILES*COLUMN_TILES mma: for two and
// eight tiles 24 for 16, so shared memory and mma.sync are the limits, close by.
#include "conv_pooled.cuh"
#include "conv_slices.cuh"
#include "tensor_core.cuh"
#include "warp_groups.cuh"

constexpr int THREADS = WARPS_COLUMNS * WARPS_DEPTH * 32, GROUP_THREADS = WARPS_COLUMNS * 32;
constexpr int BLOCKS_AT_ONCE = THREADS <= 256 ? 2 : 1;  // of a multiprocessor: 128 registers
constexpr int DY_MAPS = 16 * MAP_TILES;
constexpr int DY_PITCH = DY_MAPS % 32 == 16 ? DY_MAPS + 24 : DY_MAPS + 8;  // 8t + g: 32 banks
constexpr int X_PITCH = FEW_MAPS ? IN_MAPS : CHUNK_MAPS % 16 == 0 ? CHUNK_MAPS + 8 : CHUNK_MAPS;
constexpr int SEGMENT_TILES = SEGMENT_DEPTH / 8, ALL_TILES = SEGMENTS * SEGMENT_TILES;
// Tiles of eight columns that are side by side for sure.
constexpr int NEAR_TILES = COLUMN_TILES % SEGMENT_TILES == 0 ? SEGMENT_TILES : 1;
constexpr int BLOCK_TILES = WARPS_COLUMNS * COLUMN_TILES;
constexpr int GROUPS = (ALL_TILES + BLOCK_TILES - 1) / BLOCK_TILES;  // gridDim.z = CHUNKS * GROUPS
constexpr int PATCH_COLUMNS = 1 + KERNEL_SIZE * KERNEL_SIZE * IN_MAPS;
constexpr int SUMS = MAP_TILES * COLUMN_TILES * 4;
constexpr int COPIED = POOL_SIZE ? pooled_floats<DY_MAPS>() : PIXELS * DY_PITCH;
static_assert(TILE_WIDTH % 8 == 0, "the depth of a fragment is eight neighbours");

// Shared memory: max(2 * buffer_floats<X_PITCH, COPIED>() + (POOL_SIZE > 0) * PIXELS * DY_PITCH,
// (WARPS_DEPTH > 1) * SUMS * GROUP_THREADS) floats.
extern "C" __global__ void __launch_bounds__(THREADS, BLOCKS_AT_ONCE) conv_backward_weights_tf32(
    const float* __restrict__ x,       // aligned (M, HEIGHT, WIDTH, IN_MAPS)
    const float* __restrict__ dy,      // aligned (M, POOLED_HEIGHT, POOLED_WIDTH, OUT_MAPS)
    const float* __restrict__ argmax,  // or null: (M, POOLED_HEIGHT, POOLED_WIDTH, OUT_MAPS//4)
    float* __restrict__ partials,      // (slices, OUT_MAPS, 1 + KERNEL_SIZE**2 * IN_MAPS)
    int M,
    int slices) {
    extern __shared__ __align__(16) float shared[];
    const int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const int warp_column = warp % WARPS_COLUMNS, warp_depth = warp / WARPS_COLUMNS;
    const int chunk = blockIdx.z / GROUPS, group = blockIdx.z % GROUPS;
    const int first_map = blockIdx.y * DY_MAPS;
    const int first_tile = group * BLOCK_TILES + warp_column * COLUMN_TILES;
    int offset[COLUMN_TILES / NEAR_TILES];  // of column g in a patch; beyond the last: of the first
    for (int j = 0; j < COLUMN_TILES; j += NEAR_TILES) {
        const int tile = first_tile + j < ALL_TILES ? first_tile + j : 0;
        offset[j / NEAR_TILES] =
            segment_offset<X_PITCH>(tile / SEGMENT_TILES) + tile % SEGMENT_TILES * 8 + g;
    }
    const bool has_bias = blockIdx.z == 0 && warp_column == 0;

    float sum[MAP_TILES][COLUMN_TILES][4] = {}, bias[2 * MAP_TILES] = {};
    const auto rounded = [](float value) { return __uint_as_float(to_tf32(value)); };
    float* const spread = shared + 2 * buffer_floats<X_PITCH, COPIED>();
    const auto load_derivatives = [=](float* target, const Tile& tile) {
        if (POOL_SIZE)
            load_pooled<DY_MAPS, THREADS>(target, dy, argmax, tile, first_map);
        else
            load_outputs<DY_PITCH, DY_MAPS, THREADS>(target, dy, M, tile, first_map);
    };
    const auto prepare = [=](float* inputs, float* copied, const Tile& tile) {
        change_inputs<X_PITCH, THREADS>(inputs, rounded);
        if (POOL_SIZE) {
            __syncthreads();  // all windows have landed before positions look into them
            spread_pooled<DY_PITCH, DY_MAPS, THREADS>(spread, copied, tile, rounded);
        } else {
            change_copied<OUT_MAPS, DY_MAPS, DY_PITCH, THREADS>(copied, PIXELS, rounded);
        }
    };
    const auto multiply = [&](const float* inputs, const float* copied) {
        const float* derivatives = POOL_SIZE ? spread : copied;
        for (int pixel = warp_depth * 8; pixel < PIXELS; pixel += WARPS_DEPTH * 8) {
            const float* near = derivatives + (pixel + t) * DY_PITCH + g;
            const float* patch = inputs + patch_offset<X_PITCH>(pixel) + t * STRIDE * X_PITCH;
            unsigned left[MAP_TILES][4], right[COLUMN_TILES][2];
            for (int i = 0; i < MAP_TILES; ++i)
                for (int e = 0; e < 4; ++e) {
                    const float value = near[e / 2 * 4 * DY_PITCH + 16 * i + e % 2 * 8];
                    left[i][e] = __float_as_uint(value);
                    if (has_bias) bias[2 * i + e % 2] += value;
                }
            for (int j = 0; j < COLUMN_TILES; ++j)
                for (int e = 0; e < 2; ++e)
                    right[j][e] =
                        __float_as_uint(patch[offset[j / NEAR_TILES] + j % NEAR_TILES * 8 +
                                              e * 4 * STRIDE * X_PITCH]);
#pragma unroll
            for (int i = 0; i < MAP_TILES; ++i)
#pragma unroll
                for (int j = 0; j < COLUMN_TILES; ++j)
                    mma_m16n8k8_tf32(sum[i][j], left[i], right[j], sum[i][j]);
        }
    };
    for_all_tiles<X_PITCH, COPIED, THREADS>(x, M, chunk, shared, load_derivatives, prepare,
                                            multiply);
    const int place = threadIdx.x % GROUP_THREADS;
    sum_groups<SUMS, WARPS_DEPTH, GROUP_THREADS>(&sum[0][0][0], shared, warp_depth, place);
    for (int i = 0; i < 2 * MAP_TILES; ++i)  // lanes t = 0, 1, 2, 3 had different positions
        for (int distance = 1; distance < 4; distance *= 2)
            bias[i] += __shfl_xor_sync(0xffffffffu, bias[i], distance);
    sum_groups<2 * MAP_TILES, WARPS_DEPTH, GROUP_THREADS>(bias, shared, warp_depth, place);
    if (warp_depth > 0) return;

    float* partial = partials + blockIdx.x * OUT_MAPS * PATCH_COLUMNS;
#pragma unroll
    for (int i = 0; i < 2 * MAP_TILES; ++i) {
        const int map = first_map + i * 8 + g;
        if (map >= OUT_MAPS) continue;
        if (has_bias && t == 0) partial[map * PATCH_COLUMNS] = bias[i];
#pragma unroll
        for (int j = 0; j < COLUMN_TILES; ++j) {
            const int tile = first_tile + j;
#pragma unroll
            for (int e = 0; e < 2; ++e) {
                const int element = segment_element(chunk, tile / SEGMENT_TILES,
                                                    tile % SEGMENT_TILES * 8 + 2 * t + e);
                if (tile < ALL_TILES && element >= 0)
                    partial[map * PATCH_COLUMNS + 1 + element] = sum[i / 2][j][i % 2 * 2 + e];
            }
        }
    }
}
