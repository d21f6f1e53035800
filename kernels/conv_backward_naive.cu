// kernels/conv_backward_naive.cu: the two derivatives of the convolution, a thread an element.
//
// dy (M, OUT_HEIGHT, OUT_WIDTH, OUT_MAPS). conv_backward_data_naive: weight (OUT_MAPS, P) -> dx (M,
// HEIGHT, WIDTH, IN_MAPS); a thread gathers, in a fixed order, what every output that saw its
// element sends back. conv_backward_weights_naive: x -> dweight (OUT_MAPS, P) = scale * dy^T
// [[x]]_H, biases in column 0; a thread sums one element over all positions.
// The faster rungs: conv_forward_register and conv_forward_tf32 with flipped weights for the data,
// conv_backward_weights_register and _tf32 for the weights.
// Launcher: none; tests run it. Contract: kfcnet/ops/primitives.py. Test:
// tests/test_kernels_gemm.py.
// Operations 2*M*T*OUT_MAPS*P each. Every multiply-add reads 8 bytes: the caches are the limit.
#include "patch.cuh"

extern "C" __global__ void conv_backward_data_naive(
    const float* __restrict__ dy,      // (M, OUT_HEIGHT, OUT_WIDTH, OUT_MAPS)
    const float* __restrict__ weight,  // (OUT_MAPS, 1 + KERNEL_SIZE**2 * IN_MAPS)
    float* __restrict__ dx,            // (M, HEIGHT, WIDTH, IN_MAPS)
    int M) {
    const unsigned thread = blockIdx.x * blockDim.x + threadIdx.x;
    if (thread >= unsigned(M * HEIGHT * WIDTH * IN_MAPS)) return;
    const int j = thread % IN_MAPS, pixel = thread / IN_MAPS;
    const int w = pixel % WIDTH, h = pixel / WIDTH % HEIGHT, m = pixel / (WIDTH * HEIGHT);
    float sum = 0.0f;
    for (int r = 0; r < KERNEL_SIZE; ++r) {
        const int down = h + PADDING - r;  // STRIDE times the output's row that sees (h, w) at r
        if (down < 0 || down % STRIDE || down / STRIDE >= OUT_HEIGHT) continue;
        for (int c = 0; c < KERNEL_SIZE; ++c) {
            const int across = w + PADDING - c;
            if (across < 0 || across % STRIDE || across / STRIDE >= OUT_WIDTH) continue;
            const int t = down / STRIDE * OUT_WIDTH + across / STRIDE;
            const float* derivatives = dy + (m * LOCATIONS + t) * OUT_MAPS;
            const float* weights = weight + 1 + (r * KERNEL_SIZE + c) * IN_MAPS + j;
            for (int i = 0; i < OUT_MAPS; ++i)
                sum = fmaf(derivatives[i], weights[i * PATCH_COLUMNS], sum);
        }
    }
    dx[thread] = sum;
}

extern "C" __global__ void conv_backward_weights_naive(
    const float* __restrict__ x,   // (M, HEIGHT, WIDTH, IN_MAPS)
    const float* __restrict__ dy,  // (M, OUT_HEIGHT, OUT_WIDTH, OUT_MAPS)
    float* __restrict__ dweight,   // (OUT_MAPS, 1 + KERNEL_SIZE**2 * IN_MAPS)
    int M,
    float scale) {
    const int thread = blockIdx.x * blockDim.x + threadIdx.x;
    if (thread >= OUT_MAPS * PATCH_COLUMNS) return;
    const int i = thread / PATCH_COLUMNS, column = thread % PATCH_COLUMNS;
    float sum = 0.0f;
    for (int row = 0; row < M * LOCATIONS; ++row)
        sum = fmaf(dy[row * OUT_MAPS + i], patch_element(x, row, column), sum);
    dweight[thread] = scale * sum;
}
