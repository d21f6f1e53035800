// kernels/conv_slices.cuh: what the backward-weights kernels do around their arithmetic.
//
// The tiles of the whole batch (conv_tile.cuh) are dealt out in slices, one for each blockIdx.x; a
// block goes through its slice with two buffers: while one tile's inputs and derivatives are used
// the next one's are copied.
#pragma once
#include "conv_tile.cuh"

// A tile's inputs, X_PITCH floats a pixel of a chunk of x, and behind them DERIVATIVES floats.
template <int X_PITCH, int DERIVATIVES>
__device__ constexpr int buffer_floats() {
    return input_floats<X_PITCH>() + DERIVATIVES;
}

// load_derivatives(target, tile) and multiply(inputs, derivatives) for every tile of the slice, in
// one of two buffers in shared memory; load_derivatives starts copying. Before multiply comes
// prepare(inputs, derivatives, tile), by all threads: a thread may change what it has copied, and
// after a barrier make more of it.
template <int X_PITCH, int DERIVATIVES, int THREADS, class Load, class Prepare, class Multiply>
__device__ __forceinline__ void for_all_tiles(const float* x, int M, int chunk, float* shared,
                                              Load load_derivatives, Prepare prepare,
                                              Multiply multiply) {
    constexpr int INPUTS = input_floats<X_PITCH>(), BUFFER = buffer_floats<X_PITCH, DERIVATIVES>();
    const int tiles = (M + TILE_IMAGES - 1) / TILE_IMAGES * TILES_DOWN * TILES_ACROSS;
    const int tiles_each = (tiles + gridDim.x - 1) / gridDim.x;
    const int begin = blockIdx.x * tiles_each, end = min(begin + tiles_each, tiles);
    const auto load_tile = [&](int index) {
        if (index < end) {
            float* inputs = shared + index % 2 * BUFFER;
            const Tile tile = tile_at(index);
            load_inputs<X_PITCH, THREADS>(inputs, x, M, tile, chunk);
            load_derivatives(inputs + INPUTS, tile);
        }
        async_copy_commit();
    };
    load_tile(begin);
    for (int index = begin; index < end; ++index) {
        load_tile(index + 1);
        float* inputs = shared + index % 2 * BUFFER;
        async_copy_wait<1>();
        prepare(inputs, inputs + INPUTS, tile_at(index));
        __syncthreads();  // this tile is complete
        multiply(inputs, inputs + INPUTS);
        __syncthreads();  // all have read before the tile after next overwrites
    }
}

// Start copying DY_MAPS maps of dy under a tile, DY_PITCH floats a position, zero outside.
template <int DY_PITCH, int DY_MAPS, int THREADS>
__device__ __forceinline__ void load_outputs(float* target, const float* dy, int M,
                                             const Tile& tile, int first_map) {
    const Rectangle outputs = {tile.image, tile.row, tile.column,
                               TILE_IMAGES, TILE_HEIGHT, TILE_WIDTH};
    load_rectangle<OUT_HEIGHT, OUT_WIDTH, OUT_MAPS, DY_MAPS, DY_PITCH, 1, THREADS>(
        target, dy, M, outputs, first_map);
}
