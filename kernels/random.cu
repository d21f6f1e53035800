// kernels/random.cu: uniform and normal numbers, the same as kfcnet/philox.py's.
//
// y (count). One thread: one block of four random words, four numbers. The step is read from
// device memory, so that a captured graph draws new numbers. Uniforms are equal to the last bit;
// normals are rounded to float (Box-Muller: cosine then sine of every pair).
// Launcher: kfcnet/ops/cuda/elementwise.py. Reference: kfcnet/philox.py. Tests:
// tests/test_kernels_elementwise.py.
// Bytes a number: 4.
#include "philox.cuh"

extern "C" __global__ void uniforms(
    const long long* __restrict__ step,  // (1)
    float* __restrict__ y,               // (count)
    int count,
    unsigned int seed,
    unsigned int purpose,
    unsigned int stream) {
    const unsigned first = first_of_four();
    if (first >= count) return;
    const Words words = words_of_four(seed, purpose, *step, stream, first);
    Vector<float, 4> value;
    for (int lane = 0; lane < 4; ++lane) value[lane] = uniform(words[lane]);
    store_four(y, first, count, value);
}

struct Pair {
    float cosine, sine;
};

// Two standard normals by Box-Muller.
__device__ __forceinline__ Pair normal_pair(unsigned first, unsigned second) {
    // 1 - u is exact and in (0, 1]: the logarithm is finite.
    const float radius = sqrtf(-2.0f * logf(1.0f - uniform(first)));
    float sine, cosine;
    sincospif(2.0f * uniform(second), &sine, &cosine);
    return {radius * cosine, radius * sine};
}

extern "C" __global__ void normals(
    const long long* __restrict__ step,  // (1)
    float* __restrict__ y,               // (count)
    int count,
    unsigned int seed,
    unsigned int purpose,
    unsigned int stream) {
    const unsigned first = first_of_four();
    if (first >= count) return;
    Vector<float, 4> value;
#if RANKS == 1
    const Words words = philox_words(seed, purpose, *step, stream, first / 4);
    for (int pair = 0; pair < 4; pair += 2) {
        const Pair normal = normal_pair(words[pair], words[pair + 1]);
        value[pair] = normal.cosine;
        value[pair + 1] = normal.sine;
    }
#else  // a pair may lie in two processes' examples
    for (int lane = 0; lane < 4; ++lane) {
        const unsigned place = place_of(first + lane), even = place % 4 / 2 * 2;
        const Words words = philox_words(seed, purpose, *step, stream, place / 4);
        const Pair normal = normal_pair(words[even], words[even + 1]);
        value[lane] = place % 2 ? normal.sine : normal.cosine;
    }
#endif
    store_four(y, first, count, value);
}
