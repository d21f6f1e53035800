// kernels/philox.cuh: counter-based random numbers, the same as kfcnet/philox.py's.
//
// Philox 4x32-10 (Salmon et al. 2011, the Random123 definition). A number depends only on seed,
// purpose, step, stream and position. Tests: tests/test_kernels_elementwise.py.
#pragma once
#include "vector_load.cuh"

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

// A multiple of 2^-24 in [0, 1), exact in float.
__device__ __forceinline__ float uniform(unsigned word) {
    return (word >> 8) * (1.0f / 16777216.0f);
}
