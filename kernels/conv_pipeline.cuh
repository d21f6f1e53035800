// kernels/conv_pipeline.cuh: what the convolution kernels do around their arithmetic.
//
// A block makes a tile of output positions of TILE_MAPS maps. Its inputs stay in shared memory
// while the slabs of packed weights, one for each segment, pass through WEIGHT_STAGES buffers: the
// copies are WEIGHT_STAGES - 1 steps ahead. DEPTH_GROUPS groups of warps share the depth: a step
// brings a slab for each of them. Where the maps come in several chunks, the inputs of the next
// replace those of the one before.
#pragma once
#include "conv_packed.cuh"

constexpr int STAGE = DEPTH_GROUPS * SLAB;
constexpr int STEPS = (SEGMENTS + DEPTH_GROUPS - 1) / DEPTH_GROUPS;
constexpr int PITCH = FEW_MAPS ? IN_MAPS : CHUNK_MAPS + 4;  // 4g + t: 32 different banks

// Neighbouring maps of an output position to y (M, OUT_HEIGHT, OUT_WIDTH, OUT_MAPS), or added there;
// those beyond OUT_MAPS are left out.
template <bool accumulate, int count>
__device__ __forceinline__ void write_maps(float* y, int position, int map,
                                           Vector<float, count> values) {
    float* target = y + position * OUT_MAPS + map;
    if (OUT_MAPS % count == 0) {
        if (map >= OUT_MAPS) return;
        if (accumulate) {
            const Vector<float, count> before = load<count>(target);
            for (int e = 0; e < count; ++e) values[e] += before[e];
        }
        store(target, values);
    } else {
        for (int e = 0; e < count; ++e)
            if (map + e < OUT_MAPS) target[e] = accumulate ? target[e] + values[e] : values[e];
    }
}

// A pointer to a stage, and to the next one in turn.
template <class T>
__device__ __forceinline__ T* next_stage(T* at, const float* end) {
    at += STAGE;
    return at < end ? at : at - WEIGHT_STAGES * STAGE;
}

// Start copying the slabs of a step, those of a chunk that are left, from what this thread copies
// first: it is `left` floats before their end.
template <int THREADS>
__device__ __forceinline__ void load_weights(float* stage, const float* slab, int left) {
    constexpr int ROUND = THREADS * 4;
#pragma unroll
    for (int first = 0; first < STAGE; first += ROUND)
        if ((STAGE % ROUND == 0 || first + int(threadIdx.x) * 4 < STAGE) && first < left)
            async_copy_16(stage + first, slab + first, true);
    async_copy_commit();
}

// multiply(patches, weights) for every segment of the warp's group: a lane's pointers to the
// segment's first element in each of its patches, and to its place in the segment's slab. Before
// that prepare(inputs), once a chunk: a thread may change what it has copied.
//
// Pointers move on from step to step, rather than being calculated from its number: that takes
// half of the instructions of a step that are no arithmetic.
template <int THREADS, int PATCHES, class Prepare, class Multiply>
__device__ __forceinline__ void for_all_segments(const float* x, const float* packed, int M,
                                                 const Tile& tile, float* shared, int group,
                                                 const int (&offset)[PATCHES], int place,
                                                 Prepare prepare, Multiply multiply) {
    constexpr int AHEAD = WEIGHT_STAGES - 1;
    const int first = threadIdx.x * 4;  // float of a stage that this thread copies
    float* const stages = shared + input_floats<PITCH>();
    const float* const end = stages + WEIGHT_STAGES * STAGE;
    for (int chunk = 0; chunk < CHUNKS; ++chunk) {
        const float* slab = slabs_of(packed, chunk) + first;
        float* empty = stages + first;
        int left = SLABS - first;
        if (chunk > 0) __syncthreads();  // the chunk before has been read
        load_inputs<PITCH, THREADS>(shared, x, M, tile, chunk);
        for (int step = 0; step < AHEAD; ++step, slab += STAGE, empty += STAGE, left -= STAGE)
            load_weights<THREADS>(empty, slab, left);
        async_copy_wait<AHEAD - 1>();
        prepare(shared);

        const float* patches[PATCHES];
        for (int i = 0; i < PATCHES; ++i)
            patches[i] = shared + offset[i] + segment_offset<PITCH>(group);
        const float* weights = stages + group * SLAB + place;
        int column = group;  // of the kernel
#pragma unroll 1
        for (int step = 0; step < STEPS; ++step, slab += STAGE, left -= STAGE) {
            async_copy_wait<AHEAD - 1>();
            __syncthreads();  // inputs and weights are complete, the step before has been read
            load_weights<THREADS>(empty, slab, left);
            if (SEGMENTS % DEPTH_GROUPS == 0 || step * DEPTH_GROUPS + group < SEGMENTS)
                multiply(patches, weights);
            empty = next_stage(empty, end);
            weights = next_stage(weights, end);
            column += DEPTH_GROUPS;
            const bool next_row = column >= KERNEL_SIZE;
            if (next_row) column -= KERNEL_SIZE;
            for (int i = 0; i < PATCHES; ++i)
                patches[i] += FEW_MAPS ? DEPTH_GROUPS * IN_COLUMNS * PITCH
                                       : (DEPTH_GROUPS + next_row * (IN_COLUMNS - KERNEL_SIZE)) * PITCH;
        }
    }
}
