// kernels/outer_product.cuh: sums over pixels of outer products, in fp32 registers.
//
// A lane holds LANE_ROWS rows (a multiple of four) of SLOTS times four columns; ROW_LANES lanes of
// a warp take neighbouring rows, the other 32 / ROW_LANES neighbouring slots of four columns. A
// column is one float of a patch: slots are cut from its segments, so that four lie side by side; or
// each of the four has a place of its own.
#pragma once
#include "vector_load.cuh"

constexpr int SLOT_LANES = 32 / ROW_LANES;
constexpr int SUMS = LANE_ROWS * SLOTS * 4;

// sum[(row * SLOTS + slot) * 4 + column] += left[row] * right[offset[slot] + column], or with four
// times as many offsets right[offset[slot * 4 + column]]. Aligned rows or slots start at multiples
// of 16 bytes.
template <bool LEFT_ALIGNED, bool RIGHT_ALIGNED, int OFFSETS>
__device__ __forceinline__ void add_outer_product(float (&sum)[SUMS], const float* left,
                                                  const float* right,
                                                  const int (&offset)[OFFSETS]) {
    static_assert(OFFSETS == SLOTS || (OFFSETS == 4 * SLOTS && !RIGHT_ALIGNED), "of slots, or all");
    float rows[LANE_ROWS], columns[SLOTS][4];
#pragma unroll
    for (int i = 0; i < LANE_ROWS; i += 4) {
        if (LEFT_ALIGNED) {
            const Vector<float, 4> four = load<4>(left + i);
            for (int e = 0; e < 4; ++e) rows[i + e] = four[e];
        } else {
            for (int e = 0; e < 4; ++e) rows[i + e] = left[i + e];
        }
    }
#pragma unroll
    for (int q = 0; q < SLOTS; ++q) {
        if (RIGHT_ALIGNED) {
            const Vector<float, 4> four = load<4>(right + offset[q]);
            for (int e = 0; e < 4; ++e) columns[q][e] = four[e];
        } else {
            for (int e = 0; e < 4; ++e)
                columns[q][e] = right[OFFSETS == SLOTS ? offset[q] + e : offset[q * 4 + e]];
        }
    }
#pragma unroll
    for (int i = 0; i < LANE_ROWS; ++i)
#pragma unroll
        for (int q = 0; q < SLOTS; ++q)
#pragma unroll
            for (int e = 0; e < 4; ++e) {
                float& s = sum[(i * SLOTS + q) * 4 + e];
                s = fmaf(rows[i], columns[q][e], s);
            }
}
