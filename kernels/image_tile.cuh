// kernels/image_tile.cuh: a rectangle of pixels of some images, copied into shared memory.
#pragma once
#include "async_copy.cuh"
#include "vector.cuh"

// Floats that one copy moves: four where the maps come in fours.
template <int maps, int floats>
__device__ constexpr int floats_a_copy() {
    return maps % 4 == 0 && floats % 4 == 0 ? 4 : 1;
}

struct Rectangle {
    int image, top, left;       // of the first pixel; may lie outside
    int images, rows, columns;  // what is copied
};

// Start copying `floats` maps from first_map on of every pixel of `from` to tile[pixel * pitch],
// zero outside the `end` images (height, width, maps) of x and beyond its maps. A dilation of d
// sees an image whose pixels stand d apart with zeros between.
template <int height, int width, int maps, int floats, int pitch, int dilation, int threads>
__device__ __forceinline__ void load_rectangle(float* tile, const float* x, int end,
                                               const Rectangle& from, int first_map) {
    constexpr int VECTOR = floats_a_copy<maps, floats>(), PIECES = floats / VECTOR;
    static_assert(VECTOR == 1 || pitch % 4 == 0, "16-byte copies need an aligned pitch");
    const int pixels = from.images * from.rows * from.columns;
    for (int i = threadIdx.x; i < pixels * PIECES; i += threads) {
        const int pixel = i / PIECES, map = first_map + i % PIECES * VECTOR;
        const int line = pixel / from.columns, m = from.image + line / from.rows;
        const int h = from.top + line % from.rows, w = from.left + pixel % from.columns;
        const bool valid = map < maps && m < end && h >= 0 && h % dilation == 0 &&
                           h / dilation < height && w >= 0 && w % dilation == 0 &&
                           w / dilation < width;
        const int source = ((m * height + h / dilation) * width + w / dilation) * maps + map;
        float* target = tile + pixel * pitch + i % PIECES * VECTOR;
        if (VECTOR == 4)
            async_copy_16(target, x + (valid ? source : 0), valid);
        else
            async_copy_4(target, x + (valid ? source : 0), valid);
    }
}

// value = change(value) for the floats of `pixels` pixels that this thread copied and that have
// landed: done once, not at every use, and without a barrier of its own.
template <int maps, int floats, int pitch, int threads, class Change>
__device__ __forceinline__ void change_copied(float* tile, int pixels, Change change) {
    constexpr int VECTOR = floats_a_copy<maps, floats>(), PIECES = floats / VECTOR;
    for (int i = threadIdx.x; i < pixels * PIECES; i += threads) {
        float* target = tile + i / PIECES * pitch + i % PIECES * VECTOR;
        Vector<float, VECTOR> values = load<VECTOR>(target);
        for (int e = 0; e < VECTOR; ++e) values[e] = change(values[e]);
        store(target, values);
    }
}
