// kernels/gram_rows.cu: rows^T rows of a tall matrix (Gamma), in slices of the rows.
//
// rows (count, MAPS) -> partials (slices, MAPS, MAPS), tiles of 32 on and above the diagonal only;
// gram_sum adds the slices up. A block has a slice (blockIdx.x) and a tile (y); it copies TILE_ROWS
// rows of its maps with two buffers. Each of its WARPS warps has the whole tile in registers, 8 x 4
// elements a lane, and takes every WARPS-th row; the warps' sums are added in their order.
// Launcher: kfcnet/ops/cuda/gram.py. Contract: kfcnet/ops/primitives.py. Test:
// tests/test_kernels_gemm.py.
// Operations count*MAPS*(MAPS + 32), bytes 4*count*MAPS (for each tile); limited by memory where
// there is one tile: 67 MB for 512 images of 32 x 32 x 32.
#include "tile_pair.cuh"
#include "image_tile.cuh"
#include "warp_groups.cuh"

#define LANE_ROWS 8
#define ROW_LANES 4
#define SLOTS 1
#include "outer_product.cuh"

constexpr int TILE = 32, TILES = (MAPS + TILE - 1) / TILE, THREADS = WARPS * 32;
constexpr int BUFFER = TILE_ROWS * TILE;

// Shared memory: 4 * BUFFER floats, at least SUMS * 32.
extern "C" __global__ void __launch_bounds__(THREADS) gram_rows_slices(
    const float* __restrict__ rows,  // aligned (count, MAPS)
    float* __restrict__ partials,    // (slices, MAPS, MAPS)
    int count,
    int slices) {
    extern __shared__ __align__(16) float shared[];
    const Pair pair = pair_at(blockIdx.y, TILES);
    const int rows_each = (count + slices - 1) / slices;
    const int begin = blockIdx.x * rows_each, end = min(count, begin + rows_each);
    const auto load_tiles = [&](int first, int buffer) {
        if (first < end) {
            const Rectangle block = {first, 0, 0, TILE_ROWS, 1, 1};  // a row is an image of a pixel
            float* left = shared + buffer * 2 * BUFFER;
            load_rectangle<1, 1, MAPS, TILE, TILE, 1, THREADS>(left, rows, end, block,
                                                               pair.row * TILE);
            if (pair.row != pair.column)
                load_rectangle<1, 1, MAPS, TILE, TILE, 1, THREADS>(left + BUFFER, rows, end, block,
                                                                   pair.column * TILE);
        }
        async_copy_commit();
    };
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int row = lane / SLOT_LANES * LANE_ROWS;
    const int column[SLOTS] = {lane % SLOT_LANES * 4};

    float sum[SUMS] = {};
    load_tiles(begin, 0);
    for (int first = begin, buffer = 0; first < end; first += TILE_ROWS, buffer ^= 1) {
        load_tiles(first + TILE_ROWS, buffer ^ 1);
        async_copy_wait<1>();
        __syncthreads();  // these rows are complete
        const float* left = shared + buffer * 2 * BUFFER;
        const float* right = pair.row != pair.column ? left + BUFFER : left;
#pragma unroll 4
        for (int r = warp; r < TILE_ROWS; r += WARPS)
            add_outer_product<true, true>(sum, left + r * TILE + row, right + r * TILE, column);
        __syncthreads();  // all have read before the rows after next overwrite
    }
    sum_groups<SUMS, WARPS, 32>(sum, shared, warp, lane);
    if (warp > 0) return;
    float* partial = partials + blockIdx.x * MAPS * MAPS;
    for (int i = 0; i < LANE_ROWS; ++i)
        for (int e = 0; e < 4; ++e) {
            const int r = pair.row * TILE + row + i, c = pair.column * TILE + column[0] + e;
            if (r < MAPS && c < MAPS) partial[r * MAPS + c] = sum[i * 4 + e];
        }
}
