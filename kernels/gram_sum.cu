// kernels/gram_sum.cu: the slices of a Gram matrix summed, averaged with the old one, mirrored.
//
// partials (slices, side, side), its upper triangle -> out (side, side) = decay*out + scale * the
// sum of the slices in a fixed order, symmetric. A decay of zero does not read out.
//
//   gram_sum        a block of (32, 8) threads has a tile of 32 x 32 on or above the diagonal; its
//                   mirror image goes through shared memory, so that both are written in the order
//                   of memory. A thread adds up all slices.
//   gram_sum_lanes  for many slices of a small matrix, whose tiles would be few blocks that wait for
//                   one slice after the other: a block has 32 entries, row by row, and 8 lanes for
//                   each: slice_lanes.cuh.
// Launcher: kfcnet/ops/cuda/gram.py. Contract: kfcnet/ops/primitives.py. Test:
// tests/test_kernels_gemm.py.
// Bytes 2*(slices + 3)*side^2; limited by memory.
#include "tile_pair.cuh"
#include "slice_lanes.cuh"

constexpr int TILE = 32, LANES = 8;

extern "C" __global__ void __launch_bounds__(TILE * LANES) gram_sum(
    const float* __restrict__ partials,  // (slices, side, side)
    float* __restrict__ out,             // (side, side)
    int side,
    int slices,
    float scale,
    float decay) {
    __shared__ float tile[TILE][TILE + 1];  // one more column: no bank conflicts
    const Pair pair = pair_at(blockIdx.x, (side + TILE - 1) / TILE);
    const int tx = threadIdx.x;
    for (int ty = threadIdx.y; ty < TILE; ty += LANES) {
        const int row = pair.row * TILE + ty, column = pair.column * TILE + tx;
        if (column < row || column >= side) continue;  // so row < side too
        const long long entry = (long long)row * side + column;
        float sum = 0.0f;
#pragma unroll 4
        for (int slice = 0; slice < slices; ++slice)
            sum += partials[(long long)slice * side * side + entry];
        sum *= scale;
        if (decay != 0.0f) sum += decay * out[entry];
        out[entry] = tile[ty][tx] = sum;
    }
    __syncthreads();  // the tile is complete
    for (int ty = threadIdx.y; ty < TILE; ty += LANES) {
        const int row = pair.column * TILE + ty, column = pair.row * TILE + tx;
        if (column < row && row < side) out[(long long)row * side + column] = tile[tx][ty];
    }
}

extern "C" __global__ void __launch_bounds__(32 * SLICE_LANES) gram_sum_lanes(
    const float* __restrict__ partials,  // (slices, side, side)
    float* __restrict__ out,             // (side, side)
    int side,
    int slices,
    float scale,
    float decay) {
    const int entry = blockIdx.x * 32 + threadIdx.x;
    const int row = entry / side, column = entry % side;
    const bool is_upper = row < side && column >= row;
    float sum = scale * sum_of_slices(partials + entry, side * side, slices, is_upper);
    if (threadIdx.y > 0 || !is_upper) return;
    if (decay != 0.0f) sum += decay * out[entry];
    out[entry] = out[(long long)column * side + row] = sum;
}
