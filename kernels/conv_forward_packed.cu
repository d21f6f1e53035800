// kernels/conv_forward_packed.cu: y = [[x]]_H Wbar^T, rung 5: weights packed as they are read.
//
// Before (conv_forward_thread_tile): every block gathers the weights float by float, with the
// addresses of the layer's matrix, and every read of shared memory moves 4 bytes.
// Idea: conv_pack (FRAGMENTS 0) changes the order of the weights once, for all blocks and passes of
// a step: slab after slab as the segments come, padded with zeros, each [depth][map]. Now copies
// and reads move 16 bytes: the weights of four maps, or four inputs of one patch.
// Left: a block waits for every slab before it multiplies. Next: conv_forward_register.
//
// Arguments as in conv_forward_naive.cu, the weights packed. Warps and threads as in
// conv_forward_thread_tile.cu, but a thread's maps are two times four neighbours.
// Launcher: none; tests run it. Contract: kfcnet/ops/primitives.py. Test:
// tests/test_kernels_gemm.py.
#include "conv_tile.cuh"

constexpr int THREADS = WARPS_PIXELS * WARPS_MAPS * 32;
static_assert(PIXELS == 8 * THREAD_PIXELS * WARPS_PIXELS && TILE_MAPS == 32 * WARPS_MAPS,
              "the warps cover the tile");
constexpr int PITCH = FEW_MAPS ? IN_MAPS : CHUNK_MAPS + 4;  // 4g: different banks
constexpr int SLAB = SEGMENT_DEPTH * TILE_MAPS, SLAB_LOADS = (SLAB / 4 + THREADS - 1) / THREADS;
constexpr int BIASES = (OUT_MAPS + TILE_MAPS - 1) / TILE_MAPS * TILE_MAPS;  // packed ahead of slabs

// Four inputs of one patch: one read where every pixel is aligned.
__device__ __forceinline__ Vector<float, 4> four_inputs(const float* inputs) {
    if (!FEW_MAPS) return load<4>(inputs);
    return {inputs[0], inputs[1], inputs[2], inputs[3]};
}

extern "C" __global__ void __launch_bounds__(THREADS) conv_forward_packed(
    const float* __restrict__ x,       // aligned (M, HEIGHT, WIDTH, IN_MAPS)
    const float* __restrict__ packed,  // aligned (PACKED_SIZE)
    float* __restrict__ y,             // aligned (M, OUT_HEIGHT, OUT_WIDTH, OUT_MAPS)
    int M) {
    __shared__ __align__(16) float inputs[input_floats<PITCH>()];
    __shared__ __align__(16) float slab[SLAB];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int first_pixel = warp / WARPS_MAPS * 8 * THREAD_PIXELS + lane / 4;
    const int tile_map = warp % WARPS_MAPS * 32 + lane % 4 * 4;  // and 16 maps further
    const Tile tile = tile_at(blockIdx.x);
    int patch[THREAD_PIXELS];
    for (int q = 0; q < THREAD_PIXELS; ++q) patch[q] = patch_offset<PITCH>(first_pixel + 8 * q);

    float sum[THREAD_PIXELS][8] = {};
    for (int chunk = 0; chunk < CHUNKS; ++chunk) {
        load_inputs<PITCH, THREADS>(inputs, x, M, tile, chunk);
        async_copy_commit();
        async_copy_wait<0>();
        for (int segment = 0; segment < SEGMENTS; ++segment) {
            const int slabs = (blockIdx.y * CHUNKS + chunk) * SEGMENTS + segment;
#pragma unroll
            for (int i = 0; i < SLAB_LOADS; ++i) {
                const int e = (threadIdx.x + i * THREADS) * 4;
                if (e < SLAB) store(slab + e, load<4>(packed + BIASES + slabs * SLAB + e));
            }
            __syncthreads();  // inputs and weights are complete
            const float* patches = inputs + segment_offset<PITCH>(segment);
#pragma unroll 2
            for (int k = 0; k < SEGMENT_DEPTH; k += 4) {
                Vector<float, 4> input[THREAD_PIXELS];
                for (int q = 0; q < THREAD_PIXELS; ++q)
                    input[q] = four_inputs(patches + patch[q] + k);
#pragma unroll
                for (int d = 0; d < 4; ++d) {
                    const float* weights = slab + (k + d) * TILE_MAPS + tile_map;
                    const Vector<float, 4> low = load<4>(weights), high = load<4>(weights + 16);
#pragma unroll
                    for (int q = 0; q < THREAD_PIXELS; ++q)
#pragma unroll
                        for (int e = 0; e < 4; ++e) {
                            sum[q][e] = fmaf(input[q][d], low[e], sum[q][e]);
                            sum[q][4 + e] = fmaf(input[q][d], high[e], sum[q][4 + e]);
                        }
                }
            }
            __syncthreads();  // all have read before the next segment overwrites
        }
    }

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
            if (OUT_MAPS % 4 == 0 && map < OUT_MAPS)
                store(y + position * OUT_MAPS + map, values);
            else
                for (int e = 0; e < 4; ++e)
                    if (map + e < OUT_MAPS) y[position * OUT_MAPS + map + e] = values[e];
        }
    }
}
