// kernels/conv_forward_thread_tile.cu: y = [[x]]_H Wbar^T, rung 4: a thread, a tile in registers.
//
// Before (conv_forward_image): two floats out of shared memory for every multiply-add.
// Idea: as in matmul_thread_tile.cu. A thread makes THREAD_PIXELS positions of eight maps: of every
// element of a patch it reads THREAD_PIXELS inputs and eight weights for 8*THREAD_PIXELS
// multiply-adds.
// Left: the weights of a segment are gathered one by one, out of rows that start with a bias and
// are therefore not aligned, by every block anew. Next: conv_forward_packed.
//
// Arguments as in conv_forward_naive.cu. A warp makes 8*THREAD_PIXELS positions of 32 maps, a
// thread every eighth position and every fourth map. The block has WARPS_PIXELS x WARPS_MAPS warps:
// PIXELS = 8*THREAD_PIXELS*WARPS_PIXELS, TILE_MAPS = 32*WARPS_MAPS. Pixels are padded by four
// floats: the eight that a warp reads at once then lie in different banks.
// Launcher: none; tests run it. Contract: kfcnet/ops/primitives.py. Test:
// tests/test_kernels_gemm.py.
#include "conv_tile.cuh"

constexpr int THREADS = WARPS_PIXELS * WARPS_MAPS * 32;
static_assert(PIXELS == 8 * THREAD_PIXELS * WARPS_PIXELS && TILE_MAPS == 32 * WARPS_MAPS,
              "the warps cover the tile");
constexpr int PITCH = FEW_MAPS ? IN_MAPS : CHUNK_MAPS + 4;  // 4g: different banks
constexpr int PATCH_COLUMNS = 1 + KERNEL_SIZE * KERNEL_SIZE * IN_MAPS;
constexpr int SLAB_LOADS = (SEGMENT_DEPTH * TILE_MAPS + THREADS - 1) / THREADS;

extern "C" __global__ void __launch_bounds__(THREADS) conv_forward_thread_tile(
    const float* __restrict__ x,       // aligned (M, HEIGHT, WIDTH, IN_MAPS)
    const float* __restrict__ weight,  // (OUT_MAPS, 1 + KERNEL_SIZE**2 * IN_MAPS)
    float* __restrict__ y,             // (M, OUT_HEIGHT, OUT_WIDTH, OUT_MAPS)
    int M) {
    __shared__ __align__(16) float inputs[input_floats<PITCH>()];
    __shared__ float slab[SEGMENT_DEPTH][TILE_MAPS + 1];  // a warp writes columns: other banks
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int first_pixel = warp / WARPS_MAPS * 8 * THREAD_PIXELS + lane / 4;
    const int tile_map = warp % WARPS_MAPS * 32 + lane % 4, first_map = blockIdx.y * TILE_MAPS;
    const Tile tile = tile_at(blockIdx.x);
    int patch[THREAD_PIXELS];
    for (int q = 0; q < THREAD_PIXELS; ++q) patch[q] = patch_offset<PITCH>(first_pixel + 8 * q);

    float sum[THREAD_PIXELS][8] = {};
    for (int chunk = 0; chunk < CHUNKS; ++chunk) {
        load_inputs<PITCH, THREADS>(inputs, x, M, tile, chunk);
        async_copy_commit();
        async_copy_wait<0>();
        for (int segment = 0; segment < SEGMENTS; ++segment) {
#pragma unroll
            for (int i = 0; i < SLAB_LOADS; ++i) {
                const int e = threadIdx.x + i * THREADS, k = e % SEGMENT_DEPTH;
                const int slab_map = e / SEGMENT_DEPTH, map = first_map + slab_map;
                const int element = segment_element(chunk, segment, k);
                const bool inside = map < OUT_MAPS && element >= 0;
                if (slab_map < TILE_MAPS)
                    slab[k][slab_map] = inside ? weight[map * PATCH_COLUMNS + 1 + element] : 0.0f;
            }
            __syncthreads();  // inputs and weights are complete
            const float* patches = inputs + segment_offset<PITCH>(segment);
#pragma unroll 4
            for (int k = 0; k < SEGMENT_DEPTH; ++k) {
                float input[THREAD_PIXELS], weights[8];
                for (int q = 0; q < THREAD_PIXELS; ++q) input[q] = patches[patch[q] + k];
                for (int e = 0; e < 8; ++e) weights[e] = slab[k][tile_map + 4 * e];
#pragma unroll
                for (int q = 0; q < THREAD_PIXELS; ++q)
#pragma unroll
                    for (int e = 0; e < 8; ++e) sum[q][e] = fmaf(input[q], weights[e], sum[q][e]);
            }
            __syncthreads();  // all have read before the next segment overwrites
        }
    }

    for (int q = 0; q < THREAD_PIXELS; ++q) {
        const int position = output_index(tile, first_pixel + 8 * q, M);
        if (position < 0) continue;
        for (int e = 0; e < 8; ++e) {
            const int map = first_map + tile_map + 4 * e;
            if (map >= OUT_MAPS) continue;
            const float value = sum[q][e] + (BIAS ? weight[map * PATCH_COLUMNS] : 0.0f);
            y[position * OUT_MAPS + map] = RELU && value < 0.0f ? 0.0f : value;
        }
    }
}
