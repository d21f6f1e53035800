// kernels/conv_segments.cuh: the depth of a convolution's product, cut into segments.
//
// A segment is a part of the patch that is contiguous in a tile of the image: the maps of one
// offset (CHUNK_MAPS of them, a multiple of 8; more maps come in chunks, one after the other).
// Where an image has few maps, fewer than 8, it is a row segment: the KERNEL_SIZE pixels of one
// kernel row with all maps. So three colours cost 16 products for 15 inputs, not 40. A segment is
// padded to a multiple of 8.
#pragma once

constexpr bool FEW_MAPS = IN_MAPS < 8;
constexpr int CHUNKS = FEW_MAPS ? 1 : (IN_MAPS + CHUNK_MAPS - 1) / CHUNK_MAPS;
constexpr int SEGMENTS = FEW_MAPS ? KERNEL_SIZE : KERNEL_SIZE * KERNEL_SIZE;  // in a chunk
constexpr int SEGMENT_LENGTH = FEW_MAPS ? KERNEL_SIZE * IN_MAPS : CHUNK_MAPS;
constexpr int SEGMENT_DEPTH = (SEGMENT_LENGTH + 7) / 8 * 8;
constexpr int PIXEL_FLOATS = FEW_MAPS ? IN_MAPS : CHUNK_MAPS;  // of a pixel in a tile

// delta*IN_MAPS + j of element e of a segment, or -1 where the segment is padded.
__device__ __forceinline__ int segment_element(int chunk, int segment, int e) {
    if (FEW_MAPS) return e < SEGMENT_LENGTH ? segment * SEGMENT_LENGTH + e : -1;
    const int j = chunk * CHUNK_MAPS + e;
    return j < IN_MAPS ? segment * IN_MAPS + j : -1;
}
