// kernels/matmul_operand.cuh: one operand of a matrix product, and its tiles in shared memory.
//
// An operand is seen as (side, depth): the rows of op(a), or the columns of op(b). In memory either
// its depth runs fastest (a, or b transposed) or its side (a transposed, or b). SHIFT moves the
// first column of the stored matrix, as the homogeneous coordinate needs it:
//     0  the matrix as it is stored
//    -1  a column of ones that is not stored stands before it:   [1 x]
//     1  its first stored column is left out:                    W without the biases
#pragma once
#include "async_copy.cuh"

template <bool DEPTH_FASTEST, int SHIFT>
struct Operand {
    const float* stored;
    int side, depth;

    // Where element (s, k) lies, and whether it is a 1 that does not lie anywhere.
    __device__ __forceinline__ long long offset(int s, int k) const {
        return DEPTH_FASTEST ? (long long)s * (depth + SHIFT) + k + SHIFT
                             : (long long)k * (side + SHIFT) + s + SHIFT;
    }
    __device__ __forceinline__ bool is_one(int s, int k) const {
        return SHIFT < 0 && (DEPTH_FASTEST ? k : s) == 0;
    }
    __device__ __forceinline__ bool inside(int s, int k) const { return s < side && k < depth; }

    // The element, or zero outside.
    __device__ __forceinline__ float at(int s, int k) const {
        return !inside(s, k) ? 0.0f : is_one(s, k) ? 1.0f : stored[offset(s, k)];
    }

    // Start copying elements (first + s, first_k + k), s < SIDE, k < DEPTH, to tile[s * SIDE_STRIDE
    // + k * DEPTH_STRIDE]; neighbouring threads copy neighbours in memory.
    template <int SIDE, int DEPTH, int SIDE_STRIDE, int DEPTH_STRIDE, int THREADS>
    __device__ __forceinline__ void load_tile(float* tile, int first, int first_k) const {
        for (int i = threadIdx.x; i < SIDE * DEPTH; i += THREADS) {
            const int s = DEPTH_FASTEST ? i / DEPTH : i % SIDE;
            const int k = DEPTH_FASTEST ? i % DEPTH : i / SIDE;
            float* target = tile + s * SIDE_STRIDE + k * DEPTH_STRIDE;
            const bool valid = inside(first + s, first_k + k);
            if (valid && is_one(first + s, first_k + k))
                *target = 1.0f;
            else
                async_copy_4(target, stored + (valid ? offset(first + s, first_k + k) : 0), valid);
        }
    }
};

using Left = Operand<!TRANSPOSE_A, A_SHIFT>;
using Right = Operand<bool(TRANSPOSE_B), B_SHIFT>;
