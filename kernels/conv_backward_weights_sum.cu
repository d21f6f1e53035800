// kernels/conv_backward_weights_sum.cu: dweight = scale * the sum of the slices, in their order.
//
// partials (slices, count) -> dweight (count). A block is (32 elements, 8 lanes): lane l adds up
// slices l, l + 8, ...; the lanes' sums are added in their order.
// Launcher: kfcnet/ops/cuda_products.py. Reference: kfcnet/ops/cpu.py.
// Test: tests/test_kernels_gemm.py.
// Bytes 4*(slices + 1)*count; limited by the L2, where the partial sums still lie.

constexpr int SLICE_LANES = 8;

extern "C" __global__ void __launch_bounds__(32 * SLICE_LANES) conv_backward_weights_sum(
    const float* __restrict__ partials,  // (slices, count)
    float* __restrict__ dweight,         // (count)
    int slices,
    int count,
    float scale) {
    __shared__ float lanes[SLICE_LANES][32];
    const int index = blockIdx.x * 32 + threadIdx.x;
    float sum = 0.0f;
    if (index < count) {
#pragma unroll 4
        for (int slice = threadIdx.y; slice < slices; slice += SLICE_LANES)
            sum += partials[slice * count + index];
    }
    lanes[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();  // all lanes have left their sums
    if (threadIdx.y > 0 || index >= count) return;
    for (int lane = 1; lane < SLICE_LANES; ++lane) sum += lanes[lane][threadIdx.x];
    dweight[index] = scale * sum;
}
