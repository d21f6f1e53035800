// kernels/image.cuh: the pixel and the maps that a thread works on, in arrays (M, H, W, MAPS).
#pragma once
#include "inside.cuh"
#include "vector_load.cuh"

// Four maps a thread where they come in fours: then every pixel starts at a multiple of 16 bytes.
constexpr int LANES = MAPS % 4 == 0 ? 4 : 1;
constexpr int GROUPS = MAPS / LANES;
using Maps = Vector<float, LANES>;

struct Place {
    int image, row, column, map;
};

// Threads run over an image's groups of maps first: neighbours read and write neighbours.
template <int height, int width>
__device__ __forceinline__ Place place_of(unsigned thread) {
    const unsigned pixel = thread / GROUPS, row = pixel / width;
    return {int(row / height), int(row % height), int(pixel % width), int(thread % GROUPS) * LANES};
}
template <int height, int width>
__device__ __forceinline__ int offset_of(const Place& place) {
    return ((place.image * height + place.row) * width + place.column) * MAPS + place.map;
}

// The value where a ReLU's output is positive, else zero; all of it where there is no ReLU.
template <bool has_relu>
__device__ __forceinline__ Maps active_only(Maps value, const float* active, int offset) {
    if (!has_relu) return value;
    const Maps output = load<LANES>(active + offset);
    for (int lane = 0; lane < LANES; ++lane)
        value[lane] = output[lane] > 0.0f ? value[lane] : 0.0f;
    return value;
}
