// kernels/conv_pooled.cuh: derivatives of a maximum pool's windows, spread over a tile.
//
// Where a convolution has taken the pool behind it in its own pass (conv_max_pool.cu), dy are the
// derivatives of the pooled pixels, and argmax tells the position that each belongs to. The windows
// that reach into a tile are copied; then every position gathers what is its own, in a fixed order.
#pragma once
#include "conv_windows.cuh"

// Pieces of POOL_STRIDE positions, each with the beginning of a window, that a side of a tile
// touches.
__device__ constexpr int pieces(int side) {
    return (side - 1 + (side % POOL_STRIDE ? POOL_STRIDE - 1 : 0)) / POOL_STRIDE + 1;
}
constexpr int PIECES_DOWN = pieces(TILE_HEIGHT), PIECES_ACROSS = pieces(TILE_WIDTH);
// The windows that reach into the tile begin in these pieces and in BEFORE more, up and left.
constexpr int BEFORE = POOL_SIZE ? Windows::COVERING - 1 : 0;
constexpr int REACHING_ROWS = PIECES_DOWN + BEFORE, REACHING_COLUMNS = PIECES_ACROSS + BEFORE;
constexpr int REACHING = REACHING_ROWS * REACHING_COLUMNS;

// What is copied of DY_MAPS maps: the derivatives, and behind them four offsets a float.
template <int DY_MAPS>
__device__ constexpr int pooled_floats() {
    return REACHING * (DY_MAPS + DY_MAPS / 4);
}

// Start copying them: dy (M, POOLED_HEIGHT, POOLED_WIDTH, OUT_MAPS), and argmax a fourth of it; zero
// outside.
template <int DY_MAPS, int THREADS>
__device__ __forceinline__ void load_pooled(float* target, const float* dy, const float* argmax,
                                            const Tile& tile, int first_map) {
    constexpr int GROUPS_OF_FOUR = DY_MAPS / 4;
    for (int i = threadIdx.x; i < REACHING * GROUPS_OF_FOUR; i += THREADS) {
        const int window = i / GROUPS_OF_FOUR, map = first_map + i % GROUPS_OF_FOUR * 4;
        const int row = tile.row / POOL_STRIDE - BEFORE + window / REACHING_COLUMNS;
        const int column = tile.column / POOL_STRIDE - BEFORE + window % REACHING_COLUMNS;
        const bool is_there = unsigned(row) < POOLED_HEIGHT && unsigned(column) < POOLED_WIDTH;
        const bool is_valid = is_there && map < OUT_MAPS;
        const int line = (tile.image * POOLED_HEIGHT + row) * POOLED_WIDTH;
        const int source = (line + column) * OUT_MAPS + map;
        async_copy_16(target + i * 4, dy + source, is_valid);
        async_copy_4(target + REACHING * DY_MAPS + i, argmax + source / 4, is_valid);
    }
}

// derivatives[position * DY_PITCH + map] = change(what the position is given) for all of a tile.
template <int DY_PITCH, int DY_MAPS, int THREADS, class Change>
__device__ __forceinline__ void spread_pooled(float* derivatives, const float* pooled,
                                              const Tile& tile, Change change) {
    constexpr int GROUPS_OF_FOUR = DY_MAPS / 4;
    const int above = tile.row % POOL_STRIDE, left = tile.column % POOL_STRIDE;
    for (int i = threadIdx.x; i < PIECES_DOWN * PIECES_ACROSS * GROUPS_OF_FOUR; i += THREADS) {
        const int piece = i / GROUPS_OF_FOUR, group = i % GROUPS_OF_FOUR;
        const int down = piece / PIECES_ACROSS, across = piece % PIECES_ACROSS;
        const auto window = [&](int row, int column) {
            return (row + BEFORE) * REACHING_COLUMNS + column + BEFORE;
        };
        Windows::spread(
            down, across,
            [&](int row, int column) {
                return load<4>(pooled + window(row, column) * DY_MAPS + group * 4);
            },
            [&](int row, int column) {
                const float* four =
                    pooled + REACHING * DY_MAPS + window(row, column) * GROUPS_OF_FOUR + group;
                return load<4>(reinterpret_cast<const unsigned char*>(four));
            },
            [&](int r, int c, Vector<float, 4> sum) {
                const int row = down * POOL_STRIDE + r - above;
                const int column = across * POOL_STRIDE + c - left;
                if (unsigned(row) >= TILE_HEIGHT || unsigned(column) >= TILE_WIDTH) return;
                for (int e = 0; e < 4; ++e) sum[e] = change(sum[e]);
                store(derivatives + (row * TILE_WIDTH + column) * DY_PITCH + group * 4, sum);
            });
    }
}
