// kernels/response_norm_across.cu: response normalisation across maps, forward, backward, tangent.
//
// All arrays (pixels, MAPS). N(i) is the SIZE maps from i - SIZE/2 on, at the same pixel, clipped
// at the first and the last map; the formulas are those of response_norm_within.cu.
//
// One block: TILE_PIXELS whole pixels, which are one contiguous piece of every array; one thread
// strides over its elements. The terms of the sums are formed once, in shared memory.
// Launcher: kfcnet/ops/cuda/elementwise.py. Contract: kfcnet/ops/primitives.py. Tests:
// tests/test_kernels_elementwise.py.
// Bytes an element: 12 forward, 16 backward, 16 tangent.
#include "response_norm.cuh"

constexpr int TILE = TILE_PIXELS * MAPS;

// The sum of terms[i + from], ..., terms[i + to], of the same pixel only.
__device__ __forceinline__ float sum_near(const float* terms, int i, int from, int to) {
    const int map = i % MAPS;
    float sum = 0.0f;
    for (int offset = from; offset <= to; ++offset)
        if (map + offset >= 0 && map + offset < MAPS) sum += terms[i + offset];
    return sum;
}

extern "C" __global__ void response_norm_across(
    const float* __restrict__ x,  // (pixels, MAPS)
    float* __restrict__ y,        // (pixels, MAPS)
    float* __restrict__ d,        // (pixels, MAPS)
    int pixels,
    float alpha) {
    __shared__ float squares[TILE];
    const int first = blockIdx.x * TILE, count = min(TILE, pixels * MAPS - first);
    for (int i = threadIdx.x; i < count; i += blockDim.x) squares[i] = x[first + i] * x[first + i];
    __syncthreads();  // neighbours' squares are there
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        const float sum = sum_near(squares, i, -(SIZE / 2), SIZE - 1 - SIZE / 2);
        d[first + i] = 1.0f + alpha * sum;
        y[first + i] = x[first + i] * inverse_power(1.0f + alpha * sum);
    }
}

extern "C" __global__ void response_norm_across_backward(
    const float* __restrict__ dy,  // (pixels, MAPS)
    const float* __restrict__ x,   // (pixels, MAPS)
    const float* __restrict__ d,   // (pixels, MAPS)
    float* __restrict__ dx,        // (pixels, MAPS)
    int pixels,
    float alpha) {
    __shared__ float terms[TILE];
    const int first = blockIdx.x * TILE, count = min(TILE, pixels * MAPS - first);
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        const float d_here = d[first + i];
        terms[i] = dy[first + i] * x[first + i] * inverse_power(d_here) / d_here;
    }
    __syncthreads();  // neighbours' terms are there
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        const float sum = sum_near(terms, i, SIZE / 2 + 1 - SIZE, SIZE / 2);
        dx[first + i] = dy[first + i] * inverse_power(d[first + i]) -
                        2.0f * alpha * POWER * x[first + i] * sum;
    }
}

extern "C" __global__ void response_norm_across_tangent(
    const float* __restrict__ rx,  // (pixels, MAPS)
    const float* __restrict__ x,   // (pixels, MAPS)
    const float* __restrict__ d,   // (pixels, MAPS)
    float* __restrict__ ry,        // (pixels, MAPS)
    int pixels,
    float alpha) {
    __shared__ float terms[TILE];
    const int first = blockIdx.x * TILE, count = min(TILE, pixels * MAPS - first);
    for (int i = threadIdx.x; i < count; i += blockDim.x) terms[i] = x[first + i] * rx[first + i];
    __syncthreads();  // neighbours' terms are there
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        const float sum = sum_near(terms, i, -(SIZE / 2), SIZE - 1 - SIZE / 2);
        const float d_here = d[first + i];
        ry[first + i] = inverse_power(d_here) *
            (rx[first + i] - 2.0f * alpha * POWER * x[first + i] / d_here * sum);
    }
}
