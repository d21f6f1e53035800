// kernels/slice_lanes.cuh: an element summed over slices by several lanes of a block.
#pragma once

constexpr int SLICE_LANES = 8;

// In a block of (32 elements, SLICE_LANES), lane l adds up slices l, l + SLICE_LANES, ... of the
// element that `first` points at, `size` elements apart; lane 0 returns the lanes' sums, added in
// their order. All threads of the block call it; where an element is not wanted nothing is read.
__device__ __forceinline__ float sum_of_slices(const float* first, int size, int slices,
                                               bool is_wanted) {
    __shared__ float lanes[SLICE_LANES][32];
    float sum = 0.0f;
    if (is_wanted) {
#pragma unroll 4
        for (int slice = threadIdx.y; slice < slices; slice += SLICE_LANES)
            sum += first[(long long)slice * size];
    }
    lanes[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();  // all lanes have left their sums
    if (threadIdx.y == 0)
        for (int lane = 1; lane < SLICE_LANES; ++lane) sum += lanes[lane][threadIdx.x];
    return sum;
}
