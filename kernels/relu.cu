// kernels/relu.cu: max(x, 0) and its derivative, which is also its tangent.
//
// All arrays (count). A NaN is passed on, not turned into zero; the derivative at 0 is 0. In place
// is fine (y = x, dx = dy): a thread reads its elements before it writes them.
//
// One thread: four neighbours.
// Launchers: kfcnet/ops/cuda/convolution.py, kfcnet/ops/cuda/elementwise.py. Contract:
// kfcnet/ops/primitives.py. Tests: tests/test_kernels_elementwise.py.
// Bytes an element: 8 forward, 12 backward; limited by memory.
#include "vector_load.cuh"

extern "C" __global__ void relu(
    const float* x,  // (count)
    float* y,        // (count)
    int count) {
    const unsigned first = first_of_four();
    if (first >= count) return;
    Vector<float, 4> value = load_four(x, first, count);
    for (int lane = 0; lane < 4; ++lane) value[lane] = value[lane] < 0.0f ? 0.0f : value[lane];
    store_four(y, first, count, value);
}

extern "C" __global__ void relu_backward(
    const float* dy,  // (count)
    const float* y,   // (count)
    float* dx,        // (count)
    int count) {
    const unsigned first = first_of_four();
    if (first >= count) return;
    Vector<float, 4> value = load_four(dy, first, count);
    const Vector<float, 4> active = load_four(y, first, count);
    for (int lane = 0; lane < 4; ++lane) value[lane] = active[lane] > 0.0f ? value[lane] : 0.0f;
    store_four(dx, first, count, value);
}
