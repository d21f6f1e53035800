// kernels/conv_packed.cuh: where a tile of maps finds its weights in what conv_pack.cu makes.
#pragma once
#include "conv_tile.cuh"

constexpr int SLAB = SEGMENT_DEPTH * TILE_MAPS, SLABS = SEGMENTS * SLAB;  // of a chunk
constexpr int MAP_TILES = (OUT_MAPS + TILE_MAPS - 1) / TILE_MAPS;
constexpr int BIASES = MAP_TILES * TILE_MAPS;  // packed[0 .. BIASES - 1]

// The slabs of a chunk of the input maps, for the tile of maps that the block makes.
__device__ __forceinline__ const float* slabs_of(const float* packed, int chunk) {
    return packed + BIASES + (blockIdx.y * CHUNKS + chunk) * SLABS;
}
