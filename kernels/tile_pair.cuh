// kernels/tile_pair.cuh: the tiles on and above the diagonal of a symmetric matrix.
#pragma once

struct Pair {
    int row, column;  // of the tile, row <= column
};

// Tile number `index` of the upper triangle of tiles x tiles, row by row.
__device__ __forceinline__ Pair pair_at(int index, int tiles) {
    int row = 0;
    while (index >= tiles - row) index -= tiles - row++;
    return {row, row + index};
}
