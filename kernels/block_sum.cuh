// kernels/block_sum.cuh: the sum over a block's threads, always in the same order.
#pragma once

// Every thread of the block calls it (blockDim.x a multiple of 32, at most 1024); thread 0 has it.
static __device__ float block_sum(float value) {
    __shared__ float of_warps[32];
    for (int distance = 16; distance > 0; distance /= 2)
        value += __shfl_down_sync(0xffffffffu, value, distance);
    __syncthreads();  // the sum before may still be being read
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = value;
    __syncthreads();  // all warps have left theirs
    if (threadIdx.x < 32) {
        value = threadIdx.x < blockDim.x / 32 ? of_warps[threadIdx.x] : 0.0f;
        for (int distance = 16; distance > 0; distance /= 2)
            value += __shfl_down_sync(0xffffffffu, value, distance);
    }
    return value;
}
