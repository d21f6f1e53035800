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
    // + k * DEPTH_STRIDE]; neighbouring threads copy neighbours in memory. In a tile that turns the
    // operand these are a multiple of four banks apart, and 8 threads have all banks: a warp then
    // copies 16 of them of 2 lines each. 8 of 4 lines would have no conflict, but reach into twice
    // as many lines of the cache.
    template <int SIDE, int DEPTH, int SIDE_STRIDE, int DEPTH_STRIDE, int THREADS>
    __device__ __forceinline__ void load_tile(float* tile, int first, int first_k) const {
        constexpr int FAST = DEPTH_FASTEST ? DEPTH : SIDE, SLOW = DEPTH_FASTEST ? SIDE : DEPTH;
        constexpr int FAST_STRIDE = DEPTH_FASTEST ? DEPTH_STRIDE : SIDE_STRIDE;
        constexpr int SLOW_STRIDE = DEPTH_FASTEST ? SIDE_STRIDE : DEPTH_STRIDE;
        constexpr bool TURNS = FAST_STRIDE != 1;
        constexpr int WIDTH = TURNS && FAST > 16 ? 16 : FAST;  // of the neighbours
        constexpr int LINES = TURNS ? 2 : 1, GROUP = WIDTH * LINES;
        constexpr int GROUPS = THREADS / GROUP < FAST / WIDTH ? THREADS / GROUP : FAST / WIDTH;
        // What the block copies at once.
        constexpr int FAST_STEP = GROUPS * WIDTH, SLOW_STEP = THREADS / FAST_STEP;
        static_assert(FAST % FAST_STEP == 0 && SLOW % SLOW_STEP == 0 && THREADS % FAST_STEP == 0,
                      "the threads share the tile evenly");
        const int group = threadIdx.x / GROUP;
        const int place = threadIdx.x % WIDTH + group % GROUPS * WIDTH;
        const int line = threadIdx.x / WIDTH % LINES + group / GROUPS * LINES;
        const int fast = (DEPTH_FASTEST ? first_k : first) + place;
        const int slow = (DEPTH_FASTEST ? first : first_k) + line;
        const int fast_end = DEPTH_FASTEST ? depth : side, slow_end = DEPTH_FASTEST ? side : depth;
        const long long pitch = fast_end + SHIFT;
        const float* source = stored + slow * pitch + fast + SHIFT;
        float* target = tile + place * FAST_STRIDE + line * SLOW_STRIDE;
#pragma unroll
        for (int j = 0; j < FAST; j += FAST_STEP) {
            const bool is_one = SHIFT < 0 && fast + j == 0;
#pragma unroll
            for (int i = 0; i < SLOW; i += SLOW_STEP) {
                const bool valid = fast + j < fast_end && slow + i < slow_end;
                float* element = target + j * FAST_STRIDE + i * SLOW_STRIDE;
                if (is_one && valid)
                    *element = 1.0f;
                else
                    async_copy_4(element, source + j + i * pitch, valid);
            }
        }
    }
};

using Left = Operand<!TRANSPOSE_A, A_SHIFT>;
using Right = Operand<bool(TRANSPOSE_B), B_SHIFT>;
