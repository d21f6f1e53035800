// kernels/conv_forward_register.cu: y = [[x]]_H Wbar^T, rung 6: weights are copied ahead, fp32.
//
// Before (conv_forward_packed): a block waits for every slab of weights before it multiplies.
// Idea: WEIGHT_STAGES slabs in turn, filled by cp.async: the next is under way while this one is
// multiplied, and one barrier a segment is enough. The loop over them is conv_pipeline.cuh's.
// Left: a lane issues an instruction for every multiply-add. Next: conv_forward_mma.
//
// Arguments as in conv_forward_naive.cu, the weights packed by conv_pack (FRAGMENTS 0); ACCUMULATE
// 1: y += the convolution. It is backward-data too: the convolution of dy with flipped weights,
// padding KERNEL_SIZE - 1 - PADDING and, for a strided layer, DILATION = its stride (else 1).
//
// A warp makes 8*THREAD_PIXELS positions of 32 maps, a thread THREAD_PIXELS positions (every
// eighth) of two times four maps. The block has WARPS_PIXELS x WARPS_MAPS warps:
// PIXELS = 8*THREAD_PIXELS*WARPS_PIXELS, TILE_MAPS = 32*WARPS_MAPS. Copies: conv_pipeline.cuh.
// Launcher: kfcnet/ops/cuda/convolution.py. Contract: kfcnet/ops/primitives.py. Test:
// tests/test_kernels_gemm.py.
// Operations 2*M*T*OUT_MAPS*P; bytes from memory 4*(x + y), from the L2 the tile's border and the
// weights again for every tile. Four depths are 32*THREAD_PIXELS multiply-adds for
// THREAD_PIXELS + 8 reads of shared memory: limited by fp32 arithmetic.
#include "conv_pipeline.cuh"

constexpr int THREADS = WARPS_PIXELS * WARPS_MAPS * 32;
static_assert(PIXELS == 8 * THREAD_PIXELS * WARPS_PIXELS && TILE_MAPS == 32 * WARPS_MAPS,
              "the warps cover the tile");

// Four inputs of one patch: one read where every pixel is aligned.
__device__ __forceinline__ Vector<float, 4> four_inputs(const float* inputs) {
    if (!FEW_MAPS) return load<4>(inputs);
    return {inputs[0], inputs[1], inputs[2], inputs[3]};
}

static_assert(DEPTH_GROUPS == 1, "a warp takes all of the depth");

// Shared memory: input_floats<PITCH>() + WEIGHT_STAGES * STAGE floats. 128 registers a thread: told
// nothing, the compiler saves registers for more blocks, and spills.
extern "C" __global__ void __launch_bounds__(THREADS, 512 / THREADS) conv_forward_register(
    const float* __restrict__ x,       // aligned (M, HEIGHT, WIDTH, IN_MAPS)
    const float* __restrict__ packed,  // aligned (PACKED_SIZE)
    float* __restrict__ y,             // aligned (M, OUT_HEIGHT, OUT_WIDTH, OUT_MAPS)
    int M) {
    extern __shared__ __align__(16) float shared[];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int first_pixel = warp / WARPS_MAPS * 8 * THREAD_PIXELS + lane / 4;
    const int tile_map = warp % WARPS_MAPS * 32 + lane % 4 * 4;  // and 16 maps further
    const Tile tile = tile_at(blockIdx.x);
    int patch[THREAD_PIXELS];
    for (int q = 0; q < THREAD_PIXELS; ++q) patch[q] = patch_offset<PITCH>(first_pixel + 8 * q);

    float sum[THREAD_PIXELS][8] = {};
    const auto as_copied = [](float*) {};
    const auto multiply = [&](const float* const (&patches)[THREAD_PIXELS], const float* slab) {
#pragma unroll 2
        for (int k = 0; k < SEGMENT_DEPTH; k += 4) {
            Vector<float, 4> inputs[THREAD_PIXELS];
            for (int q = 0; q < THREAD_PIXELS; ++q) inputs[q] = four_inputs(patches[q] + k);
#pragma unroll
            for (int d = 0; d < 4; ++d) {
                const float* weights = slab + (k + d) * TILE_MAPS;
                const Vector<float, 4> low = load<4>(weights), high = load<4>(weights + 16);
#pragma unroll
                for (int q = 0; q < THREAD_PIXELS; ++q)
#pragma unroll
                    for (int e = 0; e < 4; ++e) {
                        sum[q][e] = fmaf(inputs[q][d], low[e], sum[q][e]);
                        sum[q][4 + e] = fmaf(inputs[q][d], high[e], sum[q][4 + e]);
                    }
            }
        }
    };
    for_all_segments<THREADS>(x, packed, M, tile, shared, 0, patch, tile_map, as_copied,
                              multiply);

    for (int q = 0; q < THREAD_PIXELS; ++q) {
        const int position = output_index(tile, first_pixel + 8 * q, M);
        if (position < 0) continue;
        for (int half = 0; half < 2; ++half) {
            const int map = blockIdx.y * TILE_MAPS + tile_map + 16 * half;
            Vector<float, 4> values;
            for (int e = 0; e < 4; ++e) {
                const float value = sum[q][4 * half + e] + (BIAS ? packed[map + e] : 0.0f);
                values[e] = RELU && value < 0.0f ? 0.0f : value;
            }
            write_maps<ACCUMULATE>(y, position, map, values);
        }
    }
}
