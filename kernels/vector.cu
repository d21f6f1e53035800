// kernels/vector.cu: small products of vectors, element by element.
//
//   axpy            y (count) += alpha * x
//   multiply_add    y (count) += w * x
//   scale_maps      y (count) = x * s[map], x (..., maps), s (maps)
//
// One thread: four neighbours, at any address (views into the parameter vector start anywhere).
// Launchers: kfcnet/ops/cuda/elementwise.py, kfcnet/ops/cuda/updates.py. Contract:
// kfcnet/ops/primitives.py. Tests: tests/test_kernels_elementwise.py.
// Bytes an element: 12, 16 and 8; limited by memory.
#include "vector_load.cuh"

extern "C" __global__ void axpy(
    const float* __restrict__ x,  // (count)
    float* __restrict__ y,        // (count)
    int count,
    float alpha) {
    const unsigned first = first_of_four();
    if (first >= count) return;
    const Vector<float, 4> added = load_four(x, first, count);
    Vector<float, 4> value = load_four(y, first, count);
    for (int lane = 0; lane < 4; ++lane) value[lane] += alpha * added[lane];
    store_four(y, first, count, value);
}

extern "C" __global__ void multiply_add(
    const float* __restrict__ w,  // (count)
    const float* __restrict__ x,  // (count)
    float* __restrict__ y,        // (count)
    int count) {
    const unsigned first = first_of_four();
    if (first >= count) return;
    const Vector<float, 4> weight = load_four(w, first, count), added = load_four(x, first, count);
    Vector<float, 4> value = load_four(y, first, count);
    for (int lane = 0; lane < 4; ++lane) value[lane] += weight[lane] * added[lane];
    store_four(y, first, count, value);
}

extern "C" __global__ void scale_maps(
    const float* __restrict__ x,  // (count)
    const float* __restrict__ s,  // (maps)
    float* __restrict__ y,        // (count)
    int count,
    int maps) {
    const unsigned first = first_of_four();
    if (first >= count) return;
    Vector<float, 4> value = load_four(x, first, count);
    for (int lane = 0; lane < 4; ++lane) value[lane] *= s[(first + lane) % maps];
    store_four(y, first, count, value);
}
