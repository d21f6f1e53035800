// kernels/conv_segments.cuh: the depth of a convolution's product, cut into segments.
//
// A segment is a part of the patch that is contiguous in a tile of the image: the maps of one
// offset (chunk_maps of them, a multiple of 8; more maps come in chunks, one after the other).
// Where an image has few maps, fewer than 8, it is a row segment: the kernel_size pixels of one
// kernel row with all maps. So three colours cost 16 products for 15 inputs, not 40. A segment is
// padded to a multiple of 8.
#pragma once

struct Segmentation {
    int in_maps, kernel_size, chunk_maps;

    __device__ constexpr bool few_maps() const { return in_maps < 8; }
    __device__ constexpr int chunks() const {
        return few_maps() ? 1 : (in_maps + chunk_maps - 1) / chunk_maps;
    }
    __device__ constexpr int segments() const {  // in a chunk
        return few_maps() ? kernel_size : kernel_size * kernel_size;
    }
    __device__ constexpr int length() const {
        return few_maps() ? kernel_size * in_maps : chunk_maps;
    }
    __device__ constexpr int depth() const { return (length() + 7) / 8 * 8; }

    // delta*in_maps + j of element e of a segment, or -1 where the segment is padded.
    __device__ constexpr int element(int chunk, int segment, int e) const {
        if (few_maps()) return e < length() ? segment * length() + e : -1;
        const int j = chunk * chunk_maps + e;
        return j < in_maps ? segment * in_maps + j : -1;
    }
};
