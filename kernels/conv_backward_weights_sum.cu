// kernels/conv_backward_weights_sum.cu: dweight = scale * the sum of the slices, in their order.
//
// partials (slices, count) -> dweight (count). A block is (32 elements, 8 lanes): slice_lanes.cuh.
// Launcher: kfcnet/ops/cuda/convolution.py. Contract: kfcnet/ops/primitives.py. Test:
// tests/test_kernels_gemm.py.
// Bytes 4*(slices + 1)*count; limited by the L2, where the partial sums still lie.
#include "slice_lanes.cuh"

extern "C" __global__ void __launch_bounds__(32 * SLICE_LANES) conv_backward_weights_sum(
    const float* __restrict__ partials,  // (slices, count)
    float* __restrict__ dweight,         // (count)
    int slices,
    int count,
    float scale) {
    const int index = blockIdx.x * 32 + threadIdx.x;
    const float sum = sum_of_slices(partials + index, count, slices, index < count);
    if (threadIdx.y == 0 && index < count) dweight[index] = scale * sum;
}
