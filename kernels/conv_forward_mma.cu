// kernels/conv_forward_mma.cu: y = [[x]]_H Wbar^T, rung 7: tensor cores.
//
// Before (conv_forward_register): a lane issues an instruction for every multiply-add.
// Idea: as in matmul_mma.cu. A warp makes 16*ROW_TILES positions of 16*MAP_PAIRS maps with mma.sync
// m16n8k8: 1024 multiply-adds an instruction. A fragment of inputs is read straight from the image
// in shared memory: its rows are patches, its columns eight neighbours of a segment. Inputs and
// weights are rounded to TF32 as they are read, the sums stay in fp32.
// Left: a lane reads each of a fragment's weights by itself, and four lanes meet in every bank.
// Next: conv_forward_fragments.
//
// Arguments as in conv_forward_packed.cu (FRAGMENTS 0); compute capability 8.0 and up. The block
// has WARPS_PIXELS x WARPS_MAPS warps. Tiles and copies: conv_pipeline.cuh.
// Launcher: none; tests run it. Contract: kfcnet/ops/primitives.py. Test:
// tests/test_kernels_gemm.py.
#include "conv_pipeline.cuh"
#include "tensor_core.cuh"

constexpr int THREADS = WARPS_PIXELS * WARPS_MAPS * 32;
constexpr int ROW_TILES = PIXELS / WARPS_PIXELS / 16;
constexpr int MAP_PAIRS = TILE_MAPS / WARPS_MAPS / 16;
static_assert(PIXELS == 16 * ROW_TILES * WARPS_PIXELS && TILE_MAPS == 16 * MAP_PAIRS * WARPS_MAPS,
              "the warps cover the tile");
static_assert(DEPTH_GROUPS == 1, "a warp takes all of the depth");

// Shared memory: input_floats<PITCH>() + WEIGHT_STAGES * STAGE floats.
extern "C" __global__ void __launch_bounds__(THREADS, 512 / THREADS) conv_forward_mma(
    const float* __restrict__ x,       // aligned (M, HEIGHT, WIDTH, IN_MAPS)
    const float* __restrict__ packed,  // aligned (PACKED_SIZE)
    float* __restrict__ y,             // aligned (M, OUT_HEIGHT, OUT_WIDTH, OUT_MAPS)
    int M) {
    extern __shared__ __align__(16) float shared[];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int warp_pixel = warp / WARPS_MAPS * 16 * ROW_TILES;
    const int first_pair = warp % WARPS_MAPS * MAP_PAIRS;
    const Tile tile = tile_at(blockIdx.x);
    int patch[ROW_TILES * 2];
    for (int i = 0; i < ROW_TILES * 2; ++i)
        patch[i] = patch_offset<PITCH>(warp_pixel + 8 * i + g) + t;

    float sum[ROW_TILES][2 * MAP_PAIRS][4] = {};
    const auto as_copied = [](float*) {};
    const auto multiply = [&](const float* const (&patches)[ROW_TILES * 2], const float* slab) {
#pragma unroll
        for (int k = 0; k < SEGMENT_DEPTH; k += 8) {
            unsigned inputs[ROW_TILES][4], weights[2 * MAP_PAIRS][2];
            for (int i = 0; i < ROW_TILES; ++i)
                for (int e = 0; e < 4; ++e)
                    inputs[i][e] = to_tf32(patches[2 * i + e % 2][k + e / 2 * 4]);
            for (int j = 0; j < 2 * MAP_PAIRS; ++j)
                for (int e = 0; e < 2; ++e)
                    weights[j][e] = to_tf32(slab[(k + 4 * e) * TILE_MAPS + 8 * j]);
#pragma unroll
            for (int i = 0; i < ROW_TILES; ++i)
#pragma unroll
                for (int j = 0; j < 2 * MAP_PAIRS; ++j)
                    mma_m16n8k8_tf32(sum[i][j], inputs[i], weights[j], sum[i][j]);
        }
    };
    for_all_segments<THREADS>(x, packed, M, tile, shared, 0, patch,
                              t * TILE_MAPS + first_pair * 16 + g, as_copied, multiply);

    const int first_map = blockIdx.y * TILE_MAPS + first_pair * 16 + 2 * t;
    float bias[2 * MAP_PAIRS][2] = {};
    if (BIAS)
        for (int j = 0; j < 2 * MAP_PAIRS; ++j)
            for (int e = 0; e < 2; ++e) bias[j][e] = packed[first_map + 8 * j + e];
    for (int i = 0; i < ROW_TILES; ++i)
        for (int half = 0; half < 2; ++half) {
            const int position = output_index(tile, warp_pixel + 16 * i + 8 * half + g, M);
            if (position < 0) continue;
            for (int j = 0; j < 2 * MAP_PAIRS; ++j) {
                const int map = first_map + 8 * j;
                Vector<float, 2> values;
                for (int e = 0; e < 2; ++e) {
                    const float value = sum[i][j][2 * half + e] + bias[j][e];
                    values[e] = RELU && value < 0.0f ? 0.0f : value;
                }
                if (OUT_MAPS % 2 == 0 && map < OUT_MAPS)
                    store(y + position * OUT_MAPS + map, values);
                else
                    for (int e = 0; e < 2; ++e)
                        if (map + e < OUT_MAPS) y[position * OUT_MAPS + map + e] = values[e];
            }
        }
}
