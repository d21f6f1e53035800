// kernels/conv_forward_tf32.cu: y = [[x]]_H Wbar^T, rung 11: groups of warps share the depth.
//
// Before (conv_forward_ldmatrix): a small mini-batch has few tiles, so that a multiprocessor has
// few warps, each with a long chain of steps.
// Idea: DEPTH_GROUPS groups of warps make the same tile, each from every DEPTH_GROUPS-th segment.
// Left: a warp's tile of 32 x 32 reads much of shared memory for its mma.
//
// Arguments as in conv_forward_register.cu, the weights packed with FRAGMENTS 1; inputs and weights
// are rounded to TF32 (here as they arrive, there when packed), the sums stay in fp32.
//
// A warp makes 16*ROW_TILES positions of 8*MAP_PAIRS*2 maps with mma.sync m16n8k8; the block has
// DEPTH_GROUPS groups of WARPS_PIXELS x WARPS_MAPS warps, which share the segments and whose sums
// meet at the end, in their order. A fragment of inputs is read straight from the image in shared
// memory: its eight rows are patches, neighbours where TILE_WIDTH is a multiple of 8.
// Tiles and copies: conv_pipeline.cuh.
// Launcher: kfcnet/ops/cuda/convolution.py. Contract: kfcnet/ops/primitives.py. Test:
// tests/test_kernels_gemm.py.
// Operations 2*M*T*OUT_MAPS*P; bytes as in conv_forward_register.cu. A warp's 32 x 32 tile reads 16
// times 128 bytes of shared memory for 8 mma, in four instructions: shared memory and mma.sync are
// the limits, close by.
#include "conv_pipeline.cuh"
#include "tensor_core.cuh"
#include "warp_groups.cuh"

constexpr int GROUP_WARPS = WARPS_PIXELS * WARPS_MAPS, GROUP_THREADS = GROUP_WARPS * 32;
constexpr int THREADS = DEPTH_GROUPS * GROUP_THREADS;
constexpr int ROW_TILES = PIXELS / WARPS_PIXELS / 16;
constexpr int MAP_PAIRS = TILE_MAPS / WARPS_MAPS / 16;
// Rows of a fragment that a lane points at. Where there are few maps a patch begins at any float,
// so that the lane reads its four elements one by one; else all lanes read together, one row each.
constexpr int LANE_ROWS = FEW_MAPS ? 2 : 1;
constexpr int SUMS = ROW_TILES * MAP_PAIRS * 8;
static_assert(PIXELS == 16 * ROW_TILES * WARPS_PIXELS && TILE_MAPS == 16 * MAP_PAIRS * WARPS_MAPS,
              "the warps cover the tile");

// Shared memory: max(input_floats<PITCH>() + WEIGHT_STAGES * STAGE, (DEPTH_GROUPS > 1) * SUMS *
// GROUP_THREADS) floats. 128 registers a thread, with which tiles of 128 positions and 32 maps fill
// a multiprocessor: told nothing, the compiler saves registers for more blocks, and spills.
extern "C" __global__ void __launch_bounds__(THREADS, 512 / THREADS) conv_forward_tf32(
    const float* __restrict__ x,       // aligned (M, HEIGHT, WIDTH, IN_MAPS)
    const float* __restrict__ packed,  // aligned (PACKED_SIZE)
    float* __restrict__ y,             // aligned (M, OUT_HEIGHT, OUT_WIDTH, OUT_MAPS)
    int M) {
    extern __shared__ __align__(16) float shared[];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int group = warp / GROUP_WARPS;
    const int warp_pixel = warp % GROUP_WARPS / WARPS_MAPS * 16 * ROW_TILES;
    const int first_pair = warp % WARPS_MAPS * MAP_PAIRS;
    const Tile tile = tile_at(blockIdx.x);
    int patch[ROW_TILES * LANE_ROWS];
    for (int i = 0; i < ROW_TILES; ++i)
        for (int half = 0; half < LANE_ROWS; ++half) {
            const int row = FEW_MAPS ? g + 8 * half : lane % 16;
            patch[i * LANE_ROWS + half] = patch_offset<PITCH>(warp_pixel + 16 * i + row) +
                                          (FEW_MAPS ? t : lane / 16 * 4);
        }

    float sum[ROW_TILES][2 * MAP_PAIRS][4] = {};
    const auto rounded = [](float value) { return __uint_as_float(to_tf32(value)); };
    const auto round_inputs = [=](float* inputs) {
        change_inputs<PITCH, THREADS>(inputs, rounded);
    };
    const auto multiply = [&](const float* const (&patches)[ROW_TILES * LANE_ROWS],
                              const float* pairs) {
#pragma unroll
        for (int k = 0; k < SEGMENT_DEPTH; k += 8) {
            unsigned inputs[ROW_TILES][4], weights[2 * MAP_PAIRS][2];
            for (int i = 0; i < ROW_TILES; ++i)
                if (FEW_MAPS)
                    for (int e = 0; e < 4; ++e)
                        inputs[i][e] =
                            __float_as_uint(patches[i * LANE_ROWS + e % 2][k + e / 2 * 4]);
                else
                    load_a_fragment(inputs[i], patches[i] + k);
            for (int j = 0; j < MAP_PAIRS; ++j) {
                const Vector<float, 4> pair = load<4>(pairs + k * TILE_MAPS + j * 128);
                for (int e = 0; e < 4; ++e)
                    weights[2 * j + e / 2][e % 2] = __float_as_uint(pair[e]);
            }
#pragma unroll
            for (int i = 0; i < ROW_TILES; ++i)
#pragma unroll
                for (int j = 0; j < 2 * MAP_PAIRS; ++j)
                    mma_m16n8k8_tf32(sum[i][j], inputs[i], weights[j], sum[i][j]);
        }
    };
    for_all_segments<THREADS>(x, packed, M, tile, shared, group, patch,
                              first_pair * 128 + lane * 4, round_inputs, multiply);
    sum_groups<SUMS, DEPTH_GROUPS, GROUP_THREADS>(&sum[0][0][0], shared, group,
                                                  threadIdx.x % GROUP_THREADS);
    if (group > 0) return;

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
                write_maps<ACCUMULATE>(y, position, map, values);
            }
        }
}
