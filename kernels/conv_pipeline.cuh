// kernels/conv_pipeline.cuh: what the convolution kernels do around their arithmetic.
//
// A block makes a tile of output positions of TILE_MAPS maps. Its inputs stay in shared memory
// while the slabs of packed weights, one for each segment, pass through WEIGHT_STAGES buffers: the
// copies are WEIGHT_STAGES - 1 segments ahead. Where the maps come in several chunks, the inputs of
// the next replace those of the one before.
#pragma once
#include "conv_tile.cuh"

constexpr int STEPS = CHUNKS * SEGMENTS, SLAB = SEGMENT_DEPTH * TILE_MAPS;
constexpr int PITCH = FEW_MAPS ? IN_MAPS : CHUNK_MAPS + 4;  // 4g + t: 32 different banks
constexpr int MAP_TILES = (OUT_MAPS + TILE_MAPS - 1) / TILE_MAPS;
constexpr int BIASES = MAP_TILES * TILE_MAPS;  // packed[0 .. BIASES - 1]

template <int THREADS>
__device__ __forceinline__ void load_weights(float* stages, const float* packed, int step) {
    if (step < STEPS) {
        const float* slab = packed + BIASES + (blockIdx.y * STEPS + step) * SLAB;
        float* stage = stages + step % WEIGHT_STAGES * SLAB;
        for (int i = threadIdx.x * 4; i < SLAB; i += THREADS * 4)
            async_copy_16(stage + i, slab + i, true);
    }
    async_copy_commit();
}

// multiply(inputs from the segment's first element on, the segment's slab of weights) for every
// segment, after prepare(inputs) once a chunk: a thread may change what it has copied.
template <int THREADS, class Prepare, class Multiply>
__device__ __forceinline__ void for_all_segments(const float* x, const float* packed, int M,
                                             const Tile& tile, float* shared, Prepare prepare,
                                             Multiply multiply) {
    float* stages = shared + input_floats<PITCH>();
    for (int step = 0; step < WEIGHT_STAGES - 1; ++step)
        load_weights<THREADS>(stages, packed, step);
    for (int step = 0; step < STEPS; ++step) {
        const int chunk = step / SEGMENTS, segment = step % SEGMENTS;
        if (segment == 0) {
            if (chunk > 0) __syncthreads();  // the chunk before has been read
            load_inputs<PITCH, THREADS>(shared, x, M, tile, chunk);
            async_copy_commit();
            async_copy_wait<0>();
            prepare(shared);
        } else {
            async_copy_wait<WEIGHT_STAGES - 2>();
        }
        __syncthreads();  // inputs and weights are complete, the segment before has been read
        load_weights<THREADS>(stages, packed, step + WEIGHT_STAGES - 1);
        multiply(shared + segment_offset<PITCH>(segment), stages + step % WEIGHT_STAGES * SLAB);
    }
}
