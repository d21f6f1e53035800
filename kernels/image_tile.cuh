// kernels/image_tile.cuh: a rectangle of pixels of some images, copied into shared memory.
#pragma once
#include "async_copy.cuh"
#include "vector_load.cuh"

struct Rectangle {
    int image, top, left;       // of the first pixel; may lie outside
    int images, rows, columns;  // what is copied
};

// How the threads of a block share the copies of `floats` floats a pixel: LANES of them take the
// pieces of a pixel, STEP pixels at a time. 16 bytes are a piece where the maps come in fours.
template <int maps, int floats, int threads>
struct Copies {
    static constexpr int VECTOR = maps % 4 == 0 && floats % 4 == 0 ? 4 : 1;
    static constexpr int PIECES = floats / VECTOR;
    static constexpr int LANES = PIECES < threads ? PIECES : threads, STEP = threads / LANES;

    static __device__ __forceinline__ int first_piece() { return threadIdx.x % LANES; }
    // The thread's first pixel; threads that are left over have none.
    static __device__ __forceinline__ int first_pixel(int pixels) {
        return int(threadIdx.x) < STEP * LANES ? threadIdx.x / LANES : pixels;
    }
};

// Whether a pixel is at a coordinate of an image whose `side` pixels stand `dilation` apart.
template <int side, int dilation>
__device__ __forceinline__ bool has_pixel(int at) {
    return dilation == 1 ? unsigned(at) < unsigned(side)
                         : at >= 0 && at % dilation == 0 && at / dilation < side;
}

// Pixel `index` of a rectangle, and the pixel that is a step further, without dividing again.
struct Place {
    int image, row, column;
};
__device__ __forceinline__ Place place_at(int index, const Rectangle& in) {
    const int line = index / in.columns;
    if (in.images == 1) return {0, line, index % in.columns};
    return {line / in.rows, line % in.rows, index % in.columns};
}
__device__ __forceinline__ void move_on(Place& place, const Place& step, const Rectangle& in) {
    place.column += step.column;
    const int next_row = place.column >= in.columns;
    place.column -= next_row ? in.columns : 0;
    place.row += step.row + next_row;
    place.image += step.image;
    if (in.images > 1 && place.row >= in.rows) {
        place.row -= in.rows;
        ++place.image;
    }
}

// Start copying `floats` maps from first_map on of every pixel of `from` to tile[pixel * pitch],
// zero outside the `end` images (height, width, maps) of x and beyond its maps. A dilation of d
// sees an image whose pixels stand d apart with zeros between.
template <int height, int width, int maps, int floats, int pitch, int dilation, int threads>
__device__ __forceinline__ void load_rectangle(float* tile, const float* x, int end,
                                               const Rectangle& from, int first_map) {
    using Split = Copies<maps, floats, threads>;
    static_assert(Split::VECTOR == 1 || pitch % 4 == 0, "16-byte copies need an aligned pitch");
    const int pixels = from.images * from.rows * from.columns;
    int pixel = Split::first_pixel(pixels);
    Place place = place_at(pixel, from);
    const Place step = place_at(Split::STEP, from);
    for (; pixel < pixels; pixel += Split::STEP, move_on(place, step, from)) {
        const int m = from.image + place.image, h = from.top + place.row;
        const int w = from.left + place.column;
        const bool inside =
            m < end && has_pixel<height, dilation>(h) && has_pixel<width, dilation>(w);
        const int source = ((m * height + h / dilation) * width + w / dilation) * maps;
#pragma unroll
        for (int piece = Split::first_piece(); piece < Split::PIECES; piece += Split::LANES) {
            const int map = first_map + piece * Split::VECTOR;
            float* target = tile + pixel * pitch + piece * Split::VECTOR;
            if (Split::VECTOR == 4)
                async_copy_16(target, x + source + map, inside && map < maps);
            else
                async_copy_4(target, x + source + map, inside && map < maps);
        }
    }
}

// value = change(value) for the floats of `pixels` pixels that this thread copied and that have
// landed: done once, not at every use, and without a barrier of its own.
template <int maps, int floats, int pitch, int threads, class Change>
__device__ __forceinline__ void change_copied(float* tile, int pixels, Change change) {
    using Split = Copies<maps, floats, threads>;
    for (int pixel = Split::first_pixel(pixels); pixel < pixels; pixel += Split::STEP)
#pragma unroll
        for (int piece = Split::first_piece(); piece < Split::PIECES; piece += Split::LANES) {
            float* target = tile + pixel * pitch + piece * Split::VECTOR;
            Vector<float, Split::VECTOR> values = load<Split::VECTOR>(target);
            for (int e = 0; e < Split::VECTOR; ++e) values[e] = change(values[e]);
            store(target, values);
        }
}
