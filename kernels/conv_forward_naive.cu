// kernels/conv_forward_naive.cu: y = [[x]]_H Wbar^T, rung 1: a thread, an element of y.
//
// Idea: every element of y is a sum of its own, over the offsets of the kernel and the maps; a warp
// takes 32 maps of a position. Operations 2*M*T*OUT_MAPS*P.
// Left: a thread reads its whole patch and its filter from memory, 8 bytes for a multiply-add.
// Next: conv_forward_tiled.
//
// x (M, HEIGHT, WIDTH, IN_MAPS), weight (OUT_MAPS, P) with the bias in column 0
// -> y (M, OUT_HEIGHT, OUT_WIDTH, OUT_MAPS); cross-correlation with zero padding. BIAS 0 leaves
// column 0 out, RELU 1 cuts the result at zero.
// Launcher: none; tests run it. Contract: kfcnet/ops/primitives.py. Test:
// tests/test_kernels_gemm.py.

extern "C" __global__ void conv_forward_naive(
    const float* __restrict__ x,       // (M, HEIGHT, WIDTH, IN_MAPS)
    const float* __restrict__ weight,  // (OUT_MAPS, 1 + KERNEL_SIZE**2 * IN_MAPS)
    float* __restrict__ y,             // (M, OUT_HEIGHT, OUT_WIDTH, OUT_MAPS)
    int M) {
    const unsigned thread = blockIdx.x * blockDim.x + threadIdx.x;
    if (thread >= unsigned(M * OUT_HEIGHT * OUT_WIDTH * OUT_MAPS)) return;
    const int i = thread % OUT_MAPS, row = thread / OUT_MAPS;
    const int t2 = row % OUT_WIDTH, t1 = row / OUT_WIDTH % OUT_HEIGHT;
    const int m = row / (OUT_WIDTH * OUT_HEIGHT);
    const float* filter = weight + i * (1 + KERNEL_SIZE * KERNEL_SIZE * IN_MAPS);
    float sum = BIAS ? filter[0] : 0.0f;
    for (int r = 0; r < KERNEL_SIZE; ++r) {
        const int h = t1 * STRIDE - PADDING + r;
        if (h < 0 || h >= HEIGHT) continue;
        for (int c = 0; c < KERNEL_SIZE; ++c) {
            const int w = t2 * STRIDE - PADDING + c;
            if (w < 0 || w >= WIDTH) continue;
            const float* pixel = x + ((m * HEIGHT + h) * WIDTH + w) * IN_MAPS;
            const float* weights = filter + 1 + (r * KERNEL_SIZE + c) * IN_MAPS;
            for (int j = 0; j < IN_MAPS; ++j) sum = fmaf(weights[j], pixel[j], sum);
        }
    }
    y[thread] = RELU && sum < 0.0f ? 0.0f : sum;
}
