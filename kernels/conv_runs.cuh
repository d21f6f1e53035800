// kernels/conv_runs.cuh: the depth of a convolution's product, cut into runs.
//
// A run is a stretch of the patch that lies in one piece in a tile of the image: the maps of one
// offset (CHUNK_MAPS of them, a multiple of 8; more maps come in chunks, one after the other), or,
// where an image has fewer than 8 maps, the KERNEL_SIZE pixels of one kernel row with all maps. So
// three colours cost 16 products for 15 inputs, not 40. A run is padded to a multiple of 8.
#pragma once

constexpr bool ROW_RUNS = IN_MAPS < 8;
constexpr int CHUNKS = ROW_RUNS ? 1 : (IN_MAPS + CHUNK_MAPS - 1) / CHUNK_MAPS;
constexpr int RUNS = ROW_RUNS ? KERNEL_SIZE : KERNEL_SIZE * KERNEL_SIZE;  // in a chunk
constexpr int RUN_LENGTH = ROW_RUNS ? KERNEL_SIZE * IN_MAPS : CHUNK_MAPS;
constexpr int RUN_DEPTH = (RUN_LENGTH + 7) / 8 * 8;
constexpr int PIXEL_FLOATS = ROW_RUNS ? IN_MAPS : CHUNK_MAPS;  // of a pixel in a tile

// delta*IN_MAPS + j of element e of a run, or -1 where the run is padded.
__device__ __forceinline__ int run_element(int chunk, int run, int e) {
    if (ROW_RUNS) return e < RUN_LENGTH ? run * RUN_LENGTH + e : -1;
    const int j = chunk * CHUNK_MAPS + e;
    return j < IN_MAPS ? run * IN_MAPS + j : -1;
}
