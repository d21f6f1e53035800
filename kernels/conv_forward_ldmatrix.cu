// kernels/conv_forward_ldmatrix.cu: y = [[x]]_H Wbar^T, rung 10: a fragment of inputs in one read.
//
// Before (conv_forward_rounded): a lane reads the four elements of a fragment of inputs one by one.
// Idea: ldmatrix reads all of a warp's fragment: every lane gives the address of 16 bytes of one
// row, and receives its own elements. The rows are pixels, whose maps lie side by side.
// Left: a small mini-batch has few tiles, and a warp takes all of the depth by itself. Next:
// conv_forward_tf32.
//
// Arguments and warps as in conv_forward_fragments.cu.
// Launcher: none; tests run it. Contract: kfcnet/ops/primitives.py. Test:
// tests/test_kernels_gemm.py.
#include "conv_pipeline.cuh"
#include "tensor_core.cuh"

constexpr int THREADS = WARPS_PIXELS * WARPS_MAPS * 32;
constexpr int ROW_TILES = PIXELS / WARPS_PIXELS / 16;
constexpr int MAP_PAIRS = TILE_MAPS / WARPS_MAPS / 16;
// Rows of a fragment that a lane points at. Where there are few maps a patch begins at any float,
// so that the lane reads its four elements one by one; else all lanes read together, one row each.
constexpr int LANE_ROWS = FEW_MAPS ? 2 : 1;
static_assert(PIXELS == 16 * ROW_TILES * WARPS_PIXELS && TILE_MAPS == 16 * MAP_PAIRS * WARPS_MAPS,
              "the warps cover the tile");
static_assert(DEPTH_GROUPS == 1, "a warp takes all of the depth");

// Shared memory: input_floats<PITCH>() + WEIGHT_STAGES * STAGE floats.
extern "C" __global__ void __launch_bounds__(THREADS, 512 / THREADS) conv_forward_ldmatrix(
    const float* __restrict__ x,       // aligned (M, HEIGHT, WIDTH, IN_MAPS)
    const float* __restrict__ packed,  // aligned (PACKED_SIZE)
    float* __restrict__ y,             // aligned (M, OUT_HEIGHT, OUT_WIDTH, OUT_MAPS)
    int M) {
    extern __shared__ __align__(16) float shared[];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const int warp_pixel = warp / WARPS_MAPS * 16 * ROW_TILES;
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
    for_all_segments<THREADS>(x, packed, M, tile, shared, 0, patch,
                              first_pair * 128 + lane * 4, round_inputs, multiply);

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
