// kernels/conv_backward_weights_sum.cu: gradient = scale * the sum of the slices, in their order.
//
// Of several layers at once: LAYERS is a table {place, count, tiles, most}, ... Each has its slices
// in partials, one layer behind the other, as min(M * tiles, most) times `count` elements, and its
// sum in gradient from `place` on. A block is (32 elements of a layer, 8 lanes): slice_lanes.cuh.
// Launcher: kfcnet/ops/cuda/convolution.py. Contract: kfcnet/ops/primitives.py. Test:
// tests/test_kernels_gemm.py.
// Bytes 4*(slices + 1)*count a layer; limited by the L2, where the partial sums still lie.
#include "slice_lanes.cuh"

struct Layer {
    int place, count;  // in the gradient
    int tiles, most;   // of an image; slices
};

extern "C" __global__ void __launch_bounds__(32 * SLICE_LANES) conv_backward_weights_sum(
    const float* __restrict__ partials,  // (size)
    float* __restrict__ gradient,        // (count)
    int M,
    int size,
    int count,
    float scale) {
    constexpr Layer layers[] = {LAYERS};
    int block = blockIdx.x, at = 0, slices = 0;
    Layer layer = {};
    for (const Layer& next : layers) {
        const int blocks = (next.count + 31) / 32;
        layer = next;
        slices = min(M * next.tiles, next.most);
        if (block < blocks) break;
        block -= blocks;
        at += slices * next.count;
    }
    const int index = block * 32 + threadIdx.x;
    const bool is_wanted = index < layer.count;
    const float sum = sum_of_slices(partials + at + index, layer.count, slices, is_wanted);
    if (threadIdx.y == 0 && is_wanted) gradient[layer.place + index] = scale * sum;
}
