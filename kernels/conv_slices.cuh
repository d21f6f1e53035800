// kernels/conv_slices.cuh: what the backward-weights kernels do around their arithmetic.
//
// The tiles of the whole batch (conv_tile.cuh) are dealt out in slices, one for each blockIdx.x; a
// block goes through its slice with two buffers: while one tile's inputs and derivatives are used
// the next one's are copied.
#pragma once
#include "conv_tile.cuh"

// The floats of one buffer; two of them are shared memory, and what sum_groups needs at the end.
template <int X_PITCH, int DY_PITCH>
__device__ constexpr int buffer_floats() {
    return input_floats<X_PITCH>() + PIXELS * DY_PITCH;
}

// multiply(inputs, derivatives) for every tile of the slice, from shared memory: X_PITCH floats a
// pixel of a chunk of x, DY_PITCH a position of DY_MAPS maps of dy, zero outside; prepare(inputs,
// derivatives) before it: a thread may change what it has copied.
template <int X_PITCH, int DY_PITCH, int DY_MAPS, int THREADS, class Prepare, class Multiply>
__device__ __forceinline__ void for_all_tiles(const float* x, const float* dy, int M, int chunk,
                                              int first_map, float* shared, Prepare prepare,
                                              Multiply multiply) {
    const int tiles = (M + TILE_IMAGES - 1) / TILE_IMAGES * TILES_DOWN * TILES_ACROSS;
    const int tiles_each = (tiles + gridDim.x - 1) / gridDim.x;
    const int begin = blockIdx.x * tiles_each, end = min(begin + tiles_each, tiles);
    const auto load_tile = [&](int index) {
        if (index < end) {
            float* inputs = shared + index % 2 * buffer_floats<X_PITCH, DY_PITCH>();
            const Tile tile = tile_at(index);
            const Rectangle outputs = {tile.image, tile.row, tile.column,
                                       TILE_IMAGES, TILE_HEIGHT, TILE_WIDTH};
            load_inputs<X_PITCH, THREADS>(inputs, x, M, tile, chunk);
            load_rectangle<OUT_HEIGHT, OUT_WIDTH, OUT_MAPS, DY_MAPS, DY_PITCH, 1, THREADS>(
                inputs + input_floats<X_PITCH>(), dy, M, outputs, first_map);
        }
        async_copy_commit();
    };
    load_tile(begin);
    for (int index = begin; index < end; ++index) {
        load_tile(index + 1);
        float* inputs = shared + index % 2 * buffer_floats<X_PITCH, DY_PITCH>();
        async_copy_wait<1>();
        prepare(inputs, inputs + input_floats<X_PITCH>());
        __syncthreads();  // this tile is complete
        multiply(inputs, inputs + input_floats<X_PITCH>());
        __syncthreads();  // all have read before the tile after next overwrites
    }
}
