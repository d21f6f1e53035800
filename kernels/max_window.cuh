// kernels/max_window.cuh: the windows of a maximum pool, seen from outputs and from inputs.
#pragma once
#include "image.cuh"

using Offsets = Vector<unsigned char, LANES>;
constexpr int COVERING = (SIZE + STRIDE - 1) / STRIDE;  // windows that cover a pixel, along a side

// The maxima of an output pixel's window of x (M, HEIGHT, WIDTH, MAPS), and where they lie.
__device__ __forceinline__ Maps max_of_window(const float* x, const Place& out, Offsets& where) {
    Maps best;
    for (int lane = 0; lane < LANES; ++lane) best[lane] = __int_as_float(0xff800000);  // -infinity
    for (int r = 0; r < SIZE; ++r) {
#pragma unroll
        for (int c = 0; c < SIZE; ++c) {
            const int row = out.row * STRIDE + r, column = out.column * STRIDE + c;
            const Place in = {out.image, inside(row, HEIGHT), inside(column, WIDTH), out.map};
            // Outside the image this repeats a pixel that came before, which never wins.
            const Maps value = load<LANES>(x + offset_of<HEIGHT, WIDTH>(in));
            for (int lane = 0; lane < LANES; ++lane) {
                if (!(value[lane] <= best[lane]) && best[lane] == best[lane]) {
                    best[lane] = value[lane];
                    where[lane] = r * SIZE + c;
                }
            }
        }
    }
    return best;
}

// The sum of value_at(output pixel) over the windows whose maximum an input pixel is.
template <class ValueAt>
__device__ __forceinline__ Maps sum_where_maximal(const unsigned char* argmax, const Place& in,
                                                  ValueAt value_at) {
    Maps sum = {};
#pragma unroll
    for (int i = 0; i < COVERING; ++i) {
#pragma unroll
        for (int j = 0; j < COVERING; ++j) {
            const int row = in.row / STRIDE - i, column = in.column / STRIDE - j;
            const int r = in.row - row * STRIDE, c = in.column - column * STRIDE;
            const Place out = {in.image, inside(row, OUT_HEIGHT), inside(column, OUT_WIDTH),
                               in.map};
            const Maps value = value_at(out);
            const Offsets where = load<LANES>(argmax + offset_of<OUT_HEIGHT, OUT_WIDTH>(out));
            const bool covered = row == out.row && column == out.column && r < SIZE && c < SIZE;
            for (int lane = 0; lane < LANES; ++lane)
                sum[lane] += covered && where[lane] == r * SIZE + c ? value[lane] : 0.0f;
        }
    }
    return sum;
}

// Elements of x (M, HEIGHT, WIDTH, MAPS) at the maxima of an output pixel's window.
__device__ __forceinline__ Maps at_maximum(const float* x, const Place& out, const Offsets& where) {
    Maps value;
    for (int lane = 0; lane < LANES; ++lane) {
        const Place in = {out.image, out.row * STRIDE + where[lane] / SIZE,
                          out.column * STRIDE + where[lane] % SIZE, out.map + lane};
        value[lane] = x[offset_of<HEIGHT, WIDTH>(in)];
    }
    return value;
}
