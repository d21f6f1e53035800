// kernels/max_window.cuh: the windows of a maximum pool, seen from outputs and from inputs.
//
// Windows of size x size pixels begin every `stride` pixels of an image of height x width and are
// clipped at its far borders. Where a maximum lies is its offset r*size + c in the window.
#pragma once
#include "inside.cuh"
#include "vector_load.cuh"

template <int lanes>
using Offsets = Vector<unsigned char, lanes>;

template <int lanes, int size, int stride, int height, int width, int out_height, int out_width>
struct MaxWindows {
    using Values = Vector<float, lanes>;
    static constexpr int COVERING = (size + stride - 1) / stride;  // a pixel, along a side

    // The maxima of an output pixel's window, and where they lie; value_at(row, column) of the
    // image.
    template <class ValueAt>
    static __device__ __forceinline__ Values maximum(int out_row, int out_column,
                                                     Offsets<lanes>& where, ValueAt value_at) {
        Values best;
        for (int lane = 0; lane < lanes; ++lane)
            best[lane] = __int_as_float(0xff800000);  // -infinity
        for (int r = 0; r < size; ++r) {
#pragma unroll
            for (int c = 0; c < size; ++c) {
                // Outside the image this repeats a pixel that came before, which never wins.
                const Values value = value_at(inside(out_row * stride + r, height),
                                              inside(out_column * stride + c, width));
                for (int lane = 0; lane < lanes; ++lane) {
                    if (!(value[lane] <= best[lane]) && best[lane] == best[lane]) {
                        best[lane] = value[lane];
                        where[lane] = r * size + c;
                    }
                }
            }
        }
        return best;
    }

    // The sum of value_at(row, column) over the windows, at offsets_at(row, column), whose maximum
    // a pixel of the image is.
    template <class ValueAt, class OffsetsAt>
    static __device__ __forceinline__ Values sum_where_maximal(int in_row, int in_column,
                                                               ValueAt value_at,
                                                               OffsetsAt offsets_at) {
        Values sum = {};
#pragma unroll
        for (int i = 0; i < COVERING; ++i) {
#pragma unroll
            for (int j = 0; j < COVERING; ++j) {
                const int row = in_row / stride - i, column = in_column / stride - j;
                const int r = in_row - row * stride, c = in_column - column * stride;
                const int near_row = inside(row, out_height);
                const int near_column = inside(column, out_width);
                const Values value = value_at(near_row, near_column);
                const Offsets<lanes> where = offsets_at(near_row, near_column);
                const bool covered =
                    row == near_row && column == near_column && r < size && c < size;
                for (int lane = 0; lane < lanes; ++lane)
                    sum[lane] += covered && where[lane] == r * size + c ? value[lane] : 0.0f;
            }
        }
        return sum;
    }

    // The same for all stride x stride pixels from row * stride and column * stride on, a row at a
    // time: give(r, c, sum). value_at must be zero for windows that are not there. The compiler
    // knows the offsets, which takes a third of the instructions.
    template <class ValueAt, class OffsetsAt, class Give>
    static __device__ __forceinline__ void spread(int row, int column, ValueAt value_at,
                                                  OffsetsAt offsets_at, Give give) {
#pragma unroll
        for (int r = 0; r < stride; ++r) {
            Values sum[stride] = {};
#pragma unroll
            for (int from_top = r, i = 0; from_top < size; from_top += stride, ++i)
#pragma unroll
                for (int j = 0; j < COVERING; ++j) {
                    const Values value = value_at(row - i, column - j);
                    const Offsets<lanes> where = offsets_at(row - i, column - j);
#pragma unroll
                    for (int c = 0; c < stride && c + j * stride < size; ++c)
                        for (int lane = 0; lane < lanes; ++lane)
                            if (where[lane] == from_top * size + c + j * stride)
                                sum[c][lane] += value[lane];
                }
#pragma unroll
            for (int c = 0; c < stride; ++c) give(r, c, sum[c]);
        }
    }

    // The elements at the maxima of an output pixel's window: element_at(row, column, lane).
    template <class ElementAt>
    static __device__ __forceinline__ Values at_maximum(int out_row, int out_column,
                                                        const Offsets<lanes>& where,
                                                        ElementAt element_at) {
        Values value;
        for (int lane = 0; lane < lanes; ++lane)
            value[lane] = element_at(out_row * stride + where[lane] / size,
                                     out_column * stride + where[lane] % size, lane);
        return value;
    }
};
