// kernels/conv_forward_tiled.cu: y = [[x]]_H Wbar^T, rung 2: an implicit matrix product.
//
// Before (conv_forward_naive): 8 bytes from memory for every multiply-add.
// Idea: matmul_tiled with a left operand that is not in memory. Its rows are the output positions
// of the whole batch, its depth the columns of a patch; an element of the patch matrix is fetched
// from the image when its tile is loaded, and then used TILE times.
// Left: the address of an element takes more instructions than its use. Next: conv_forward_image.
//
// Arguments as in conv_forward_naive.cu.
// Launcher: none; tests run it. Contract: kfcnet/ops/primitives.py. Test:
// tests/test_kernels_gemm.py.
#include "patch.cuh"

extern "C" __global__ void __launch_bounds__(TILE * TILE) conv_forward_tiled(
    const float* __restrict__ x,       // (M, HEIGHT, WIDTH, IN_MAPS)
    const float* __restrict__ weight,  // (OUT_MAPS, 1 + KERNEL_SIZE**2 * IN_MAPS)
    float* __restrict__ y,             // (M, OUT_HEIGHT, OUT_WIDTH, OUT_MAPS)
    int M) {
    __shared__ float patch_tile[TILE][TILE];  // [row][k]
    // One more column: a warp reads all maps of the weights at once, which would lie in two banks.
    // The price is paid by the writes, of two rows each: the end of one meets the start of the other.
    __shared__ float weight_tile[TILE][TILE + 1];  // [map][k]
    const int tx = threadIdx.x, ty = threadIdx.y;
    const int row = blockIdx.x * TILE + ty, rows = M * LOCATIONS;
    const int first_map = blockIdx.y * TILE, map = first_map + tx;
    float sum = 0.0f;
    for (int first = BIAS ? 0 : 1; first < PATCH_COLUMNS; first += TILE) {
        const int column = first + tx;
        patch_tile[ty][tx] =
            row < rows && column < PATCH_COLUMNS ? patch_element(x, row, column) : 0.0f;
        weight_tile[ty][tx] = first_map + ty < OUT_MAPS && column < PATCH_COLUMNS
                                  ? weight[(first_map + ty) * PATCH_COLUMNS + column] : 0.0f;
        __syncthreads();  // the tiles are complete
#pragma unroll
        for (int k = 0; k < TILE; ++k) sum = fmaf(patch_tile[ty][k], weight_tile[tx][k], sum);
        __syncthreads();  // all have read before the next step overwrites
    }
    if (row < rows && map < OUT_MAPS) y[row * OUT_MAPS + map] = RELU && sum < 0.0f ? 0.0f : sum;
}
