// kernels/max_pool.cu: the maximum of each SIZE x SIZE window, its derivative and its tangent.
//
// x (M, HEIGHT, WIDTH, MAPS) -> y, argmax (M, OUT_HEIGHT, OUT_WIDTH, MAPS). Windows start in the
// image every STRIDE pixels and are clipped at its far borders. argmax is the offset r*SIZE + c of
// the maximum in its window (SIZE <= 16), the first where several are equal. A NaN counts as larger
// than any number: it is passed on. RELU 1: y = max(y, 0), in the same pass; derivative and tangent
// of a window are then zero where that, `active`, is not positive.
//
// One thread: LANES maps of one pixel of the result. The backward pass gathers: every pixel looks
// into the windows that cover it, in a fixed order, so nothing is added by two threads.
// Launcher: kfcnet/ops/cuda/elementwise.py. Contract: kfcnet/ops/primitives.py. Tests:
// tests/test_kernels_elementwise.py.
// Bytes, with x elements of input and y of output: forward 4x + 5y, backward 5y + 4x, tangent at
// most 4x + 5y, 4y more with `active`; limited by memory.
#include "image.cuh"
#include "max_window.cuh"

using Windows = MaxWindows<LANES, SIZE, STRIDE, HEIGHT, WIDTH, OUT_HEIGHT, OUT_WIDTH>;

extern "C" __global__ void max_pool(
    const float* __restrict__ x,         // aligned (M, HEIGHT, WIDTH, MAPS)
    float* __restrict__ y,               // aligned (M, OUT_HEIGHT, OUT_WIDTH, MAPS)
    unsigned char* __restrict__ argmax,  // aligned (M, OUT_HEIGHT, OUT_WIDTH, MAPS)
    int M) {
    const unsigned thread = blockIdx.x * blockDim.x + threadIdx.x;
    if (thread >= unsigned(M * OUT_HEIGHT * OUT_WIDTH * GROUPS)) return;
    const Place out = place_of<OUT_HEIGHT, OUT_WIDTH>(thread);

    Offsets<LANES> where = {};
    Maps best = Windows::maximum(out.row, out.column, where, [&](int row, int column) {
        return load<LANES>(x + offset_of<HEIGHT, WIDTH>({out.image, row, column, out.map}));
    });
    for (int lane = 0; lane < LANES; ++lane)
        if (RELU && best[lane] < 0.0f) best[lane] = 0.0f;
    const int offset = offset_of<OUT_HEIGHT, OUT_WIDTH>(out);
    store(y + offset, best);
    store(argmax + offset, where);
}

extern "C" __global__ void max_pool_backward(
    const float* __restrict__ dy,              // aligned (M, OUT_HEIGHT, OUT_WIDTH, MAPS)
    const unsigned char* __restrict__ argmax,  // aligned (M, OUT_HEIGHT, OUT_WIDTH, MAPS)
    const float* __restrict__ active,          // or null: aligned (M, OUT_HEIGHT, OUT_WIDTH, MAPS)
    float* __restrict__ dx,                    // aligned (M, HEIGHT, WIDTH, MAPS)
    int M) {
    const unsigned thread = blockIdx.x * blockDim.x + threadIdx.x;
    if (thread >= unsigned(M * HEIGHT * WIDTH * GROUPS)) return;
    const Place in = place_of<HEIGHT, WIDTH>(thread);

    const auto offset_at = [&](int row, int column) {
        return offset_of<OUT_HEIGHT, OUT_WIDTH>({in.image, row, column, in.map});
    };
    const Maps sum = Windows::sum_where_maximal(
        in.row, in.column,
        [&](int row, int column) {
            const int offset = offset_at(row, column);
            return active_only<RELU>(load<LANES>(dy + offset), active, offset);
        },
        [&](int row, int column) { return load<LANES>(argmax + offset_at(row, column)); });
    store(dx + offset_of<HEIGHT, WIDTH>(in), sum);
}

extern "C" __global__ void max_pool_tangent(
    const float* __restrict__ rx,              // aligned (M, HEIGHT, WIDTH, MAPS)
    const unsigned char* __restrict__ argmax,  // aligned (M, OUT_HEIGHT, OUT_WIDTH, MAPS)
    const float* __restrict__ active,          // or null: aligned (M, OUT_HEIGHT, OUT_WIDTH, MAPS)
    float* __restrict__ ry,                    // aligned (M, OUT_HEIGHT, OUT_WIDTH, MAPS)
    int M) {
    const unsigned thread = blockIdx.x * blockDim.x + threadIdx.x;
    if (thread >= unsigned(M * OUT_HEIGHT * OUT_WIDTH * GROUPS)) return;
    const Place out = place_of<OUT_HEIGHT, OUT_WIDTH>(thread);
    const int offset = offset_of<OUT_HEIGHT, OUT_WIDTH>(out);

    const Maps value = Windows::at_maximum(
        out.row, out.column, load<LANES>(argmax + offset), [&](int row, int column, int lane) {
            return rx[offset_of<HEIGHT, WIDTH>({out.image, row, column, out.map + lane})];
        });
    store(ry + offset, active_only<RELU>(value, active, offset));
}
