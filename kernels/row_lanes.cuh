// kernels/row_lanes.cuh: sums over rows for 32 maps, by eight lanes of a block that share the rows.
#pragma once

constexpr int ROW_LANES = 8;

// In a block of (32 maps, ROW_LANES): the lanes' values added in the order of the lanes, for each
// map. Every thread of the block calls it and gets the sum.
static __device__ float sum_row_lanes(float value) {
    __shared__ float lanes[ROW_LANES][32];
    __syncthreads();  // the sum before may still be being read
    lanes[threadIdx.y][threadIdx.x] = value;
    __syncthreads();  // all lanes have left theirs
    float sum = 0.0f;
    for (int lane = 0; lane < ROW_LANES; ++lane) sum += lanes[lane][threadIdx.x];
    return sum;
}
