// kernels/patch.cuh: elements of the patch matrix [[x]]_H (M*T, P) that is never written.
//
// Row m*T + t is the patch of output location t of image m, column 0 is 1, column 1 + delta*J + j
// the input at offset delta = r*K + c of map j, zero outside the image; P = 1 + K*K*J.
#pragma once

constexpr int LOCATIONS = OUT_HEIGHT * OUT_WIDTH;                            // T
constexpr int PATCH_COLUMNS = 1 + KERNEL_SIZE * KERNEL_SIZE * IN_MAPS;       // P

__device__ __forceinline__ float patch_element(const float* x, int row, int column) {
    if (column == 0) return 1.0f;
    const int delta = (column - 1) / IN_MAPS, j = (column - 1) % IN_MAPS;
    const int m = row / LOCATIONS, t = row % LOCATIONS;
    const int h = t / OUT_WIDTH * STRIDE - PADDING + delta / KERNEL_SIZE;
    const int w = t % OUT_WIDTH * STRIDE - PADDING + delta % KERNEL_SIZE;
    const bool inside = 0 <= h && h < HEIGHT && 0 <= w && w < WIDTH;
    return inside ? x[((m * HEIGHT + h) * WIDTH + w) * IN_MAPS + j] : 0.0f;
}
