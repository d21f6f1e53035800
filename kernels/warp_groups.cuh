// kernels/warp_groups.cuh: the sum over groups of warps that shared the depth.
#pragma once

// value[0 .. COUNT - 1] of group 0 becomes the sum over the groups, added in their order. Thread
// `place` of a group meets thread `place` of the others; each has GROUP_THREADS threads. `shared`
// holds COUNT * GROUP_THREADS floats; all threads of the block call, and no copy is under way.
template <int COUNT, int GROUPS, int GROUP_THREADS>
__device__ __forceinline__ void sum_groups(float* value, float* shared, int group, int place) {
    for (int source = 1; source < GROUPS; ++source) {
        __syncthreads();  // what lay in `shared` has been read
        if (group == source) {
#pragma unroll
            for (int i = 0; i < COUNT; ++i) shared[i * GROUP_THREADS + place] = value[i];
        }
        __syncthreads();  // the source group has left its values
        if (group == 0) {
#pragma unroll
            for (int i = 0; i < COUNT; ++i) value[i] += shared[i * GROUP_THREADS + place];
        }
    }
}
