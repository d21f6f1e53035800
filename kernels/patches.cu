// kernels/patches.cu: the patch matrix [[x]]_H written out (im2col), and its adjoint.
//
// x (M, HEIGHT, WIDTH, IN_MAPS) <-> rows (M*T, P): see patch.cuh. Nothing on the training path
// needs it: for tests and teaching. The adjoint adds every patch back onto its pixels, without
// column 0; it gathers, so nothing is added by two threads.
// One thread: one element of the result.
// Launcher: kfcnet/ops/cuda/convolution.py. Contract: kfcnet/ops/primitives.py. Test:
// tests/test_kernels_gemm.py.
// Bytes: 4*M*T*P written (read by the adjoint), K*K/STRIDE^2 times the image; limited by memory.
#include "patch.cuh"

extern "C" __global__ void patches(
    const float* __restrict__ x,  // (M, HEIGHT, WIDTH, IN_MAPS)
    float* __restrict__ rows,     // (M * OUT_HEIGHT * OUT_WIDTH, 1 + KERNEL_SIZE**2 * IN_MAPS)
    int M) {
    const unsigned thread = blockIdx.x * blockDim.x + threadIdx.x;
    if (thread >= unsigned(M * LOCATIONS) * PATCH_COLUMNS) return;
    rows[thread] = patch_element(x, thread / PATCH_COLUMNS, thread % PATCH_COLUMNS);
}

extern "C" __global__ void patches_adjoint(
    const float* __restrict__ rows,  // (M * OUT_HEIGHT * OUT_WIDTH, 1 + KERNEL_SIZE**2 * IN_MAPS)
    float* __restrict__ x,           // (M, HEIGHT, WIDTH, IN_MAPS)
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
            const long long row = m * LOCATIONS + down / STRIDE * OUT_WIDTH + across / STRIDE;
            sum += rows[row * PATCH_COLUMNS + 1 + (r * KERNEL_SIZE + c) * IN_MAPS + j];
        }
    }
    x[thread] = sum;
}
