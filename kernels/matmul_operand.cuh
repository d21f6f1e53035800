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

    __device__ __forceinline__ bool inside(int s, int k) const { return s < side && k < depth; }

    // The element (s, k), or zero outside.
    __device__ __forceinline__ float at(int s, int k) const {
        if (!inside(s, k)) return 0.0f;
        const int fast = (DEPTH_FASTEST ? k : s) + SHIFT, slow = DEPTH_FASTEST ? s : k;
        const long long pitch = (DEPTH_FASTEST ? depth : side) + SHIFT;
        return fast < 0 ? 1.0f : stored[slow * pitch + fast];
    }

    // Start copying elements (first + s, first_k + k), s < SIDE, k < DEPTH, to tile[s * SIDE_STRIDE
    // + k * DEPTH_STRIDE]; neighbouring threads copy neighbours in memory, a thread one column.
    template <int SIDE, int DEPTH, int SIDE_STRIDE, int DEPTH_STRIDE, int THREADS>
    __device__ __forceinline__ void load_tile(float* tile, int first, int first_k) const {
        constexpr int FAST = DEPTH_FASTEST ? DEPTH : SIDE, SLOW = DEPTH_FASTEST ? SIDE : DEPTH;
        constexpr int FAST_STRIDE = DEPTH_FASTEST ? DEPTH_STRIDE : SIDE_STRIDE;
        constexpr int SLOW_STRIDE = DEPTH_FASTEST ? SIDE_STRIDE : DEPTH_STRIDE;
        constexpr int STEP = THREADS / FAST;  // rows that the block copies at once
        static_assert(THREADS % FAST == 0 && SLOW % STEP == 0, "the threads share the tile evenly");
        const int place = threadIdx.x % FAST, line = threadIdx.x / FAST;
        const int fast = (DEPTH_FASTEST ? first_k : first) + place;
        const int slow = (DEPTH_FASTEST ? first : first_k) + line;
        const int fast_end = DEPTH_FASTEST ? depth : side, slow_end = DEPTH_FASTEST ? side : depth;
        const bool is_one = SHIFT < 0 && fast == 0;
        const long long pitch = fast_end + SHIFT;
        const float* source = stored + slow * pitch + fast + SHIFT;
        float* target = tile + place * FAST_STRIDE + line * SLOW_STRIDE;
#pragma unroll
        for (int i = 0; i < SLOW; i += STEP) {
            const bool valid = fast < fast_end && slow + i < slow_end;
            if (is_one && valid)
                target[i * SLOW_STRIDE] = 1.0f;
            else
                async_copy_4(target + i * SLOW_STRIDE, source + i * pitch, valid);
        }
    }
};

using Left = Operand<!TRANSPOSE_A, A_SHIFT>;
using Right = Operand<bool(TRANSPOSE_B), B_SHIFT>;
