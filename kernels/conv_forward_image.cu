// kernels/conv_forward_image.cu: y = [[x]]_H Wbar^T, rung 3: a tile of the image in shared memory.
//
// Before (conv_forward_tiled): every element of a patch is fetched by itself, with two divisions
// for its address; neighbouring patches share most of their inputs, which are fetched again.
// Idea: a block makes a tile of neighbouring positions. What they see together is a rectangle of
// the image: it is copied once, and a patch is read from it. The elements of one segment of a patch
// (conv_segments.cuh: the maps of one offset) lie side by side, so that their address is the
// patch's offset and a counter.
// Left: a thread reads two floats of shared memory for every multiply-add. Next:
// conv_forward_thread_tile.
//
// Arguments as in conv_forward_naive.cu. A block makes PIXELS = TILE_IMAGES x TILE_HEIGHT x
// TILE_WIDTH positions of TILE_MAPS maps, a thread one of them. The weights of a segment follow it
// through shared memory. More than CHUNK_MAPS input maps come in chunks.
// Launcher: none; tests run it. Contract: kfcnet/ops/primitives.py. Test:
// tests/test_kernels_gemm.py.
#include "conv_tile.cuh"

constexpr int THREADS = PIXELS * TILE_MAPS;
constexpr int PITCH = PIXEL_FLOATS, PATCH_COLUMNS = 1 + KERNEL_SIZE * KERNEL_SIZE * IN_MAPS;
constexpr int SLAB_LOADS = (SEGMENT_DEPTH * TILE_MAPS + THREADS - 1) / THREADS;

extern "C" __global__ void __launch_bounds__(THREADS) conv_forward_image(
    const float* __restrict__ x,       // aligned (M, HEIGHT, WIDTH, IN_MAPS)
    const float* __restrict__ weight,  // (OUT_MAPS, 1 + KERNEL_SIZE**2 * IN_MAPS)
    float* __restrict__ y,             // (M, OUT_HEIGHT, OUT_WIDTH, OUT_MAPS)
    int M) {
    __shared__ __align__(16) float inputs[input_floats<PITCH>()];
    __shared__ float slab[SEGMENT_DEPTH][TILE_MAPS + 1];  // a warp writes columns: other banks
    const int pixel = threadIdx.x / TILE_MAPS, tile_map = threadIdx.x % TILE_MAPS;
    const int first_map = blockIdx.y * TILE_MAPS;
    const Tile tile = tile_at(blockIdx.x);
    const int patch = patch_offset<PITCH>(pixel);

    float sum = 0.0f;
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
            for (int k = 0; k < SEGMENT_DEPTH; ++k)
                sum = fmaf(patches[patch + k], slab[k][tile_map], sum);
            __syncthreads();  // all have read before the next segment overwrites
        }
    }

    const int position = output_index(tile, pixel, M), map = first_map + tile_map;
    if (position < 0 || map >= OUT_MAPS) return;
    const float value = sum + (BIAS ? weight[map * PATCH_COLUMNS] : 0.0f);
    y[position * OUT_MAPS + map] = RELU && value < 0.0f ? 0.0f : value;
}
