// kernels/dropout.cu: y = x * mask * scale with a mask that depends on seed, step and stream alone.
//
// All arrays (count); scale = 1 / keep. An element is kept where its uniform number is below keep:
// where the top 24 bits of its word are below threshold = ceil(keep * 2^24), which is the same
// test without rounding keep. The derivative and the tangent multiply by the same mask.
//
// One thread: four neighbours, one block of random words. The step is read from device memory, so
// that a captured graph draws new masks.
// Launcher: kfcnet/ops/cuda/elementwise.py. Contract: kfcnet/ops/primitives.py. Tests:
// tests/test_kernels_elementwise.py.
// Bytes an element: 9 each way; some 20 integer operations an element forward, which memory hides.
#include "philox.cuh"

extern "C" __global__ void dropout(
    const float* x,                      // (count)
    const long long* __restrict__ step,  // (1)
    float* y,                            // (count)
    unsigned char* __restrict__ mask,    // (count)
    int count,
    unsigned int seed,
    unsigned int purpose,
    unsigned int stream,
    unsigned int threshold,
    float scale) {
    const unsigned first = first_of_four();
    if (first >= count) return;
    const Words words = words_of_four(seed, purpose, *step, stream, first);
    Vector<float, 4> value = load_four(x, first, count);
    Vector<unsigned char, 4> kept;
    for (int lane = 0; lane < 4; ++lane) {
        kept[lane] = (words[lane] >> 8) < threshold;
        value[lane] = value[lane] * kept[lane] * scale;
    }
    store_four(y, first, count, value);
    store_four(mask, first, count, kept);
}

extern "C" __global__ void dropout_backward(
    const float* dy,                         // (count)
    const unsigned char* __restrict__ mask,  // (count)
    float* dx,                               // (count)
    int count,
    float scale) {
    const unsigned first = first_of_four();
    if (first >= count) return;
    Vector<float, 4> value = load_four(dy, first, count);
    const Vector<unsigned char, 4> kept = load_four(mask, first, count);
    for (int lane = 0; lane < 4; ++lane) value[lane] = value[lane] * kept[lane] * scale;
    store_four(dx, first, count, value);
}
