// kernels/avg_pool.cu: the mean of each clipped SIZE x SIZE window, and its derivative.
//
// x (M, HEIGHT, WIDTH, MAPS) -> y (M, OUT_HEIGHT, OUT_WIDTH, MAPS). Windows start in the image
// every STRIDE pixels (STRIDE <= SIZE); one that hangs over a far border is divided by the pixels
// it has inside. Linear: the tangent is the forward pass. RELU 1: `active` is the output of a ReLU
// before the pool, whose derivative is taken in the same pass: where it is not positive, dx is zero,
// and x, then a tangent, counts as zero.
//
// One thread: LANES maps of one pixel of the result; the backward pass gathers, in a fixed order.
// Launcher: kfcnet/ops/cuda/elementwise.py. Contract: kfcnet/ops/primitives.py. Tests:
// tests/test_kernels_elementwise.py.
// Bytes, with x elements of input and y of output: 4x + 4y each way, 4x more with `active`; limited
// by memory.
#include "image.cuh"

constexpr int COVERING = (SIZE + STRIDE - 1) / STRIDE;  // windows that cover a pixel, along a side

// One over the pixels that the window of output pixel (row, column) has inside the image.
__device__ __forceinline__ float weight_of(int row, int column) {
    return 1.0f / (min(SIZE, HEIGHT - row * STRIDE) * min(SIZE, WIDTH - column * STRIDE));
}

extern "C" __global__ void avg_pool(
    const float* __restrict__ x,       // aligned (M, HEIGHT, WIDTH, MAPS)
    const float* __restrict__ active,  // or null: aligned (M, HEIGHT, WIDTH, MAPS)
    float* __restrict__ y,             // aligned (M, OUT_HEIGHT, OUT_WIDTH, MAPS)
    int M) {
    const unsigned thread = blockIdx.x * blockDim.x + threadIdx.x;
    if (thread >= unsigned(M * OUT_HEIGHT * OUT_WIDTH * GROUPS)) return;
    const Place out = place_of<OUT_HEIGHT, OUT_WIDTH>(thread);

    Maps sum = {};
    for (int r = 0; r < SIZE; ++r) {
#pragma unroll
        for (int c = 0; c < SIZE; ++c) {
            const int row = out.row * STRIDE + r, column = out.column * STRIDE + c;
            const Place in = {out.image, inside(row, HEIGHT), inside(column, WIDTH), out.map};
            const int offset = offset_of<HEIGHT, WIDTH>(in);
            const Maps value = active_only<RELU>(load<LANES>(x + offset), active, offset);
            for (int lane = 0; lane < LANES; ++lane)
                sum[lane] += row < HEIGHT && column < WIDTH ? value[lane] : 0.0f;
        }
    }
    const float weight = weight_of(out.row, out.column);
    for (int lane = 0; lane < LANES; ++lane) sum[lane] *= weight;
    store(y + offset_of<OUT_HEIGHT, OUT_WIDTH>(out), sum);
}

extern "C" __global__ void avg_pool_backward(
    const float* __restrict__ dy,      // aligned (M, OUT_HEIGHT, OUT_WIDTH, MAPS)
    const float* __restrict__ active,  // or null: aligned (M, HEIGHT, WIDTH, MAPS)
    float* __restrict__ dx,            // aligned (M, HEIGHT, WIDTH, MAPS)
    int M) {
    const unsigned thread = blockIdx.x * blockDim.x + threadIdx.x;
    if (thread >= unsigned(M * HEIGHT * WIDTH * GROUPS)) return;
    const Place in = place_of<HEIGHT, WIDTH>(thread);

    Maps sum = {};
    for (int i = 0; i < COVERING; ++i) {
#pragma unroll
        for (int j = 0; j < COVERING; ++j) {
            const int row = in.row / STRIDE - i, column = in.column / STRIDE - j;
            const Place out = {in.image, inside(row, OUT_HEIGHT), inside(column, OUT_WIDTH),
                               in.map};
            const Maps value = load<LANES>(dy + offset_of<OUT_HEIGHT, OUT_WIDTH>(out));
            const bool covered = row == out.row && column == out.column &&
                                 in.row - row * STRIDE < SIZE &&
                                 in.column - column * STRIDE < SIZE;
            const float weight = weight_of(out.row, out.column);
            for (int lane = 0; lane < LANES; ++lane)
                sum[lane] += covered ? value[lane] * weight : 0.0f;
        }
    }
    const int offset = offset_of<HEIGHT, WIDTH>(in);
    store(dx + offset, active_only<RELU>(sum, active, offset));
}
