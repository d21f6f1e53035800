// kernels/conv_backward_weights_register.cu: dy^T [[x]]_H in slices of the batch, fp32.
//
// x (M, HEIGHT, WIDTH, IN_MAPS), dy (M, OUT_HEIGHT, OUT_WIDTH, OUT_MAPS) -> partials (slices,
// OUT_MAPS, P), the biases in column 0; conv_backward_weights_sum adds the slices up in order.
//
// A block takes a slice of the tiles (blockIdx.x), LANE_ROWS*ROW_LANES maps of dy (y), and a chunk
// of x's maps with all or a part of its slots of four columns (z). Its warps are WARPS_COLUMNS side
// by side and WARPS_DEPTH that take turns with the positions. A position is one outer product:
// its derivatives times its patch, read from the tile (outer_product.cuh).
// Launcher: kfcnet/ops/cuda/convolution.py. Contract: kfcnet/ops/primitives.py. Test:
// tests/test_kernels_gemm.py.
// Operations 2*M*T*OUT_MAPS*P; bytes 4*(x with the tiles' borders + dy) for every block in y and z,
// and 4*slices*OUT_MAPS*P for the partial sums. 64 multiply-adds for four 16-byte reads of shared
// memory where the maps come in fours: limited by fp32 arithmetic.
#include "conv_slices.cuh"
#include "outer_product.cuh"
#include "warp_groups.cuh"

constexpr int THREADS = WARPS_COLUMNS * WARPS_DEPTH * 32, GROUP_THREADS = WARPS_COLUMNS * 32;
constexpr int DY_MAPS = LANE_ROWS * ROW_LANES;
constexpr int SEGMENT_SLOTS = (SEGMENT_LENGTH + 3) / 4, ALL_SLOTS = SEGMENTS * SEGMENT_SLOTS;
constexpr int BLOCK_SLOTS = WARPS_COLUMNS * SLOTS * SLOT_LANES;
constexpr int GROUPS = (ALL_SLOTS + BLOCK_SLOTS - 1) / BLOCK_SLOTS;  // gridDim.z = CHUNKS * GROUPS
static_assert(TILE_WIDTH % 4 == 0, "a warp takes four neighbours in turn");
static_assert(DY_MAPS <= 32, "a lane sums the biases of its map");
constexpr int PATCH_COLUMNS = 1 + KERNEL_SIZE * KERNEL_SIZE * IN_MAPS;

// Shared memory: max(2 * buffer_floats, (WARPS_DEPTH > 1) * SUMS * GROUP_THREADS) floats.
extern "C" __global__ void __launch_bounds__(THREADS, 1) conv_backward_weights_register(
    const float* __restrict__ x,   // aligned (M, HEIGHT, WIDTH, IN_MAPS)
    const float* __restrict__ dy,  // aligned (M, OUT_HEIGHT, OUT_WIDTH, OUT_MAPS)
    float* __restrict__ partials,  // (slices, OUT_MAPS, 1 + KERNEL_SIZE**2 * IN_MAPS)
    int M,
    int slices) {
    extern __shared__ __align__(16) float shared[];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int warp_column = warp % WARPS_COLUMNS, warp_depth = warp / WARPS_COLUMNS;
    const int chunk = blockIdx.z / GROUPS, group = blockIdx.z % GROUPS;
    const int row = lane / SLOT_LANES * LANE_ROWS, first_map = blockIdx.y * DY_MAPS;
    const int warp_slot = group * BLOCK_SLOTS + warp_column * SLOTS * SLOT_LANES;
    const int first_slot = warp_slot + lane % SLOT_LANES;
    int offset[SLOTS];  // of a slot in a patch; beyond the last: of the first
    for (int q = 0; q < SLOTS; ++q) {
        const int slot = first_slot + q * SLOT_LANES < ALL_SLOTS ? first_slot + q * SLOT_LANES : 0;
        offset[q] = segment_offset<PIXEL_FLOATS>(slot / SEGMENT_SLOTS) + slot % SEGMENT_SLOTS * 4;
    }
    const bool has_bias = blockIdx.z == 0 && warp_column == 0;

    float sum[SUMS] = {}, bias = 0.0f;  // of map `lane`
    const auto load_derivatives = [=](float* target, const Tile& tile) {
        load_outputs<DY_MAPS, DY_MAPS, THREADS>(target, dy, M, tile, first_map);
    };
    const auto as_copied = [](float*, float*, const Tile&) {};
    const auto multiply = [&](const float* inputs, const float* derivatives) {
        for (int first = 4 * warp_depth; first < PIXELS; first += 4 * WARPS_DEPTH) {
            const float* near = derivatives + first * DY_MAPS;
            const float* patch = inputs + patch_offset<PIXEL_FLOATS>(first);
#pragma unroll
            for (int c = 0; c < 4; ++c, near += DY_MAPS, patch += STRIDE * PIXEL_FLOATS) {
                add_outer_product<true, !FEW_MAPS>(sum, near + row, patch, offset);
                if (has_bias) bias += near[lane % DY_MAPS];
            }
        }
    };
    for_all_tiles<PIXEL_FLOATS, PIXELS * DY_MAPS, THREADS>(x, M, chunk, shared, load_derivatives,
                                                           as_copied, multiply);
    const int place = threadIdx.x % GROUP_THREADS;
    sum_groups<SUMS, WARPS_DEPTH, GROUP_THREADS>(sum, shared, warp_depth, place);
    sum_groups<1, WARPS_DEPTH, GROUP_THREADS>(&bias, shared, warp_depth, place);
    if (warp_depth > 0) return;

    float* partial = partials + blockIdx.x * OUT_MAPS * PATCH_COLUMNS;
    if (has_bias && lane < DY_MAPS && first_map + lane < OUT_MAPS)
        partial[(first_map + lane) * PATCH_COLUMNS] = bias;
#pragma unroll
    for (int i = 0; i < LANE_ROWS; ++i) {
        const int map = first_map + row + i;
        if (map >= OUT_MAPS) continue;
#pragma unroll
        for (int q = 0; q < SLOTS; ++q) {
            const int slot = first_slot + q * SLOT_LANES;
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                const int element =
                    segment_element(chunk, slot / SEGMENT_SLOTS, slot % SEGMENT_SLOTS * 4 + e);
                if (slot < ALL_SLOTS && element >= 0)
                    partial[map * PATCH_COLUMNS + 1 + element] = sum[(i * SLOTS + q) * 4 + e];
            }
        }
    }
}
