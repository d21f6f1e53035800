// kernels/gram_patches.cu: [[x]]_H^T [[x]]_H in slices of the rows, any stride; patches on the fly.
//
// x (M, HEIGHT, WIDTH, IN_MAPS) -> partials (slices, P, P), tiles of TILE on and above the diagonal
// only; gram_sum adds the slices up. A block has a tile (blockIdx.x) and a slice of the patch
// matrix's M*T rows (y); a step of DEPTH rows of its two times TILE columns is formed in shared
// memory (patch.cuh) and used TILE times. (TILE / 4)^2 threads, 4 x 4 elements each.
// For stride 1 and K = 5 gram_offsets.cu does 7.6 times less; this is for the rest: strides, K = 1.
// Launcher: kfcnet/ops/cuda/gram.py. Contract: kfcnet/ops/primitives.py. Test:
// tests/test_kernels_gemm.py.
// Operations M*T*P*(P + TILE); limited by the addresses of the patches' elements and by fp32
// arithmetic.
#include "tile_pair.cuh"
#include "patch.cuh"
#include "vector_load.cuh"

constexpr int TILES = (PATCH_COLUMNS + TILE - 1) / TILE, ACROSS = TILE / 4;
constexpr int THREADS = ACROSS * ACROSS;

extern "C" __global__ void __launch_bounds__(THREADS) gram_patches_slices(
    const float* __restrict__ x,   // (M, HEIGHT, WIDTH, IN_MAPS)
    float* __restrict__ partials,  // (slices * (1 + KERNEL_SIZE**2 * IN_MAPS)**2)
    int M,
    int slices) {
    __shared__ __align__(16) float left[DEPTH][TILE], right[DEPTH][TILE];
    const Pair pair = pair_at(blockIdx.x, TILES);
    const int tile_row = threadIdx.x / ACROSS * 4, tile_column = threadIdx.x % ACROSS * 4;
    const int rows = M * LOCATIONS, rows_each = (rows + slices - 1) / slices;
    const int end = min(rows, int(blockIdx.y + 1) * rows_each);
    const auto element = [&](int row, int column) {
        return row < end && column < PATCH_COLUMNS ? patch_element(x, row, column) : 0.0f;
    };

    float sum[4][4] = {};
    for (int first = blockIdx.y * rows_each; first < end; first += DEPTH) {
        for (int i = threadIdx.x; i < DEPTH * TILE; i += THREADS) {
            left[i / TILE][i % TILE] = element(first + i / TILE, pair.row * TILE + i % TILE);
            right[i / TILE][i % TILE] = element(first + i / TILE, pair.column * TILE + i % TILE);
        }
        __syncthreads();  // the tiles are complete
#pragma unroll
        for (int k = 0; k < DEPTH; ++k) {
            const Vector<float, 4> l = load<4>(&left[k][tile_row]);
            const Vector<float, 4> r = load<4>(&right[k][tile_column]);
            for (int i = 0; i < 4; ++i)
                for (int j = 0; j < 4; ++j) sum[i][j] = fmaf(l[i], r[j], sum[i][j]);
        }
        __syncthreads();  // all have read before the next step overwrites
    }
    float* partial = partials + (long long)blockIdx.y * PATCH_COLUMNS * PATCH_COLUMNS;
    for (int i = 0; i < 4; ++i)
        for (int j = 0; j < 4; ++j) {
            const int row = pair.row * TILE + tile_row + i;
            const int column = pair.column * TILE + tile_column + j;
            if (row < PATCH_COLUMNS && column < PATCH_COLUMNS)
                partial[row * PATCH_COLUMNS + column] = sum[i][j];
        }
}
