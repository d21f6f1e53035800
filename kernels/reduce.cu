// kernels/reduce.cu: sums over vectors to one number on the device, the scale of a clipped step.
//
//   dot_slices    partials (slices): the shares of sum x*y;  weighted_dot_slices: of sum w*x*y
//   sum_slices    result (1) = sum of the partials, in their order
//   trace         result (1) = sum of the diagonal of matrix (side, side)
//   clip_scale    nu (1) = learning_rate^2 * quadratic (1), scale (1) = min(1, sqrt(clip / nu))
//   polyak_scale  result (1) = min(scale, share * h / (learning_rate * slope)), h the objective
//
// No atomics: the same numbers give the same bits. The number of slices depends on the length
// alone; one slice is already the result. A NaN in nu is passed on to the scale.
//
// dot_slices: one block a slice, one thread, four neighbours of every round. Blocks are a multiple
// of 32 threads.
// Launcher: kfcnet/ops/cuda/updates.py. Contract: kfcnet/ops/primitives.py. Tests:
// tests/test_kernels_elementwise.py.
// Bytes an element: 8 and 12; limited by memory, when short by latency.
#include "block_sum.cuh"
#include "vector_load.cuh"

extern "C" __global__ void dot_slices(
    const float* __restrict__ x,   // (count)
    const float* __restrict__ y,   // (count)
    float* __restrict__ partials,  // (slices)
    int count,
    int slices) {
    float sum = 0.0f;
    for (unsigned first = first_of_four(); first < count; first += 4 * slices * blockDim.x) {
        const Vector<float, 4> a = load_four(x, first, count), b = load_four(y, first, count);
        for (int lane = 0; lane < 4; ++lane) sum += a[lane] * b[lane];
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

extern "C" __global__ void weighted_dot_slices(
    const float* __restrict__ w,   // (count)
    const float* __restrict__ x,   // (count)
    const float* __restrict__ y,   // (count)
    float* __restrict__ partials,  // (slices)
    int count,
    int slices) {
    float sum = 0.0f;
    for (unsigned first = first_of_four(); first < count; first += 4 * slices * blockDim.x) {
        const Vector<float, 4> weight = load_four(w, first, count);
        const Vector<float, 4> a = load_four(x, first, count), b = load_four(y, first, count);
        for (int lane = 0; lane < 4; ++lane) sum += weight[lane] * a[lane] * b[lane];
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

// One block.
extern "C" __global__ void sum_slices(
    const float* __restrict__ partials,  // (slices)
    float* __restrict__ result,          // (1)
    int slices) {
    float sum = 0.0f;
    for (int slice = threadIdx.x; slice < slices; slice += blockDim.x) sum += partials[slice];
    sum = block_sum(sum);
    if (threadIdx.x == 0) *result = sum;
}

// One block.
extern "C" __global__ void trace(
    const float* __restrict__ matrix,  // (side, side)
    float* __restrict__ result,        // (1)
    int side) {
    float sum = 0.0f;
    for (int i = threadIdx.x; i < side; i += blockDim.x) sum += matrix[i * side + i];
    sum = block_sum(sum);
    if (threadIdx.x == 0) *result = sum;
}

// One thread.
extern "C" __global__ void clip_scale(
    const float* __restrict__ quadratic,      // (1)
    const float* __restrict__ learning_rate,  // (1)
    float* __restrict__ scale,                // (1)
    float* __restrict__ nu,                   // (1)
    float clip) {
    const float value = *learning_rate * *learning_rate * *quadratic;
    *nu = value;
    *scale = value <= clip ? 1.0f : sqrtf(clip / value);
}

// One thread.
extern "C" __global__ void polyak_scale(
    const float* __restrict__ scale,          // or null: (1)
    const float* __restrict__ totals,         // (2): losses, errors
    const float* __restrict__ twice_penalty,  // (1)
    const float* __restrict__ slope,          // (1)
    const float* __restrict__ learning_rate,  // (1)
    float* __restrict__ result,               // (1)
    float inverse_examples,
    float share) {
    const float given = scale ? *scale : 1.0f;
    const float h = totals[0] * inverse_examples + *twice_penalty / 2;
    const float decrease = *learning_rate * *slope, bound = share * h / decrease;
    const bool is_lower = bound < given || bound != bound;  // a NaN is passed on
    *result = decrease > 0.0f || decrease != decrease ? (is_lower ? bound : given) : given;
}
