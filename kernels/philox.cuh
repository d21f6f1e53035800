// kernels/philox.cuh: counter-based random numbers, the same as kfcnet/philox.py's.
//
// Philox 4x32-10 (Salmon et al. 2011, the Random123 definition). A number depends only on seed,
// purpose, step, stream and position. Tests: tests/test_kernels_elementwise.py.
#pragma once
#include "vector_load.cuh"

// Of RANKS processes that share a mini-batch this one, RANK, has every RANKS-th example, of WIDTH
// elements each: see kfcnet/ranks.py.
#ifndef RANKS
#define RANKS 1
#define RANK 0
#define WIDTH 1
#endif

using Words = Vector<unsigned, 4>;

// Words 4*block to 4*block + 3 of the sequence of (seed, purpose, step, stream).
__device__ __forceinline__ Words philox_words(unsigned seed, unsigned purpose, long long step,
                                              unsigned stream, unsigned block) {
    const unsigned long long number = step;
    Words counter = {block, stream, unsigned(number), unsigned(number >> 32)};
    unsigned key_low = seed, key_high = purpose;
    for (int round = 0; round < 10; ++round) {
        const unsigned low = 0xD2511F53u * counter[0], high = __umulhi(0xD2511F53u, counter[0]);
        const unsigned low2 = 0xCD9E8D57u * counter[2], high2 = __umulhi(0xCD9E8D57u, counter[2]);
        counter = {high2 ^ counter[1] ^ key_low, low2, high ^ counter[3] ^ key_high, low};
        key_low += 0x9E3779B9u;
        key_high += 0xBB67AE85u;
    }
    return counter;
}

// The place in the whole mini-batch of an element of this process's examples.
__device__ __forceinline__ unsigned place_of(unsigned element) {
    return RANKS == 1 ? element : (element / WIDTH * RANKS + RANK) * WIDTH + element % WIDTH;
}

// The words of elements first to first + 3, first a multiple of four, by their places.
__device__ __forceinline__ Words words_of_four(unsigned seed, unsigned purpose, long long step,
                                               unsigned stream, unsigned first) {
    if (RANKS == 1 || WIDTH % 4 == 0)
        return philox_words(seed, purpose, step, stream, place_of(first) / 4);
    Words words;
    for (int lane = 0; lane < 4; ++lane) {
        const unsigned place = place_of(first + lane);
        words[lane] = philox_words(seed, purpose, step, stream, place / 4)[place % 4];
    }
    return words;
}

// A multiple of 2^-24 in [0, 1), exact in float.
__device__ __forceinline__ float uniform(unsigned word) {
    return (word >> 8) * (1.0f / 16777216.0f);
}
