// kernels/scale_shift.cu: a learned scale and shift of every map, and the sums of their gradients.
//
// weight (MAPS, 2): a row (shift, scale) a map; x, y, dy (M, locations, MAPS):
//   scale_shift  y = shift + scale * x
//   map_sums     sums (M, MAPS, 2) = over the locations of an example, [sum of dy, sum of dy * x]:
//                the gradient of each example along its map's (shift, scale)
//
// scale_shift: one thread, four neighbours. map_sums: a block is (32 maps, 8 lanes) of one example;
// a lane takes every eighth location, and the lanes are added in their order (row_lanes.cuh).
// Launcher: kfcnet/ops/cuda/elementwise.py. Reference: scale_shift_loops, map_sums_loops in
// tests/checks.py. Tests: tests/test_kernels_elementwise.py, tests/test_ops.py.
// Bytes an element: 8 each; limited by memory.
#include "row_lanes.cuh"
#include "vector_load.cuh"

extern "C" __global__ void scale_shift(
    const float* __restrict__ x,       // (rows, MAPS)
    const float* __restrict__ weight,  // (MAPS, 2)
    float* __restrict__ y,             // (rows, MAPS)
    int rows) {
    const unsigned first = first_of_four();
    if (first >= rows * MAPS) return;
    Vector<float, 4> value = load_four(x, first, rows * MAPS);
    for (int lane = 0; lane < 4; ++lane) {
        const int map = (first + lane) % MAPS;
        value[lane] = weight[2 * map] + weight[2 * map + 1] * value[lane];
    }
    store_four(y, first, rows * MAPS, value);
}

extern "C" __global__ void __launch_bounds__(32 * ROW_LANES) map_sums(
    const float* __restrict__ x,   // (M, locations, MAPS)
    const float* __restrict__ dy,  // (M, locations, MAPS)
    float* __restrict__ sums,      // (M, MAPS, 2)
    int M,
    int locations) {
    const int example = blockIdx.x, map = blockIdx.y * 32 + threadIdx.x;
    float of_dy = 0.0f, of_dy_x = 0.0f;
    if (map < MAPS)
        for (int location = threadIdx.y; location < locations; location += ROW_LANES) {
            const int at = (example * locations + location) * MAPS + map;
            of_dy += dy[at];
            of_dy_x += dy[at] * x[at];
        }
    of_dy = sum_row_lanes(of_dy);
    of_dy_x = sum_row_lanes(of_dy_x);
    if (threadIdx.y > 0 || map >= MAPS) return;
    sums[2 * (example * MAPS + map)] = of_dy;
    sums[2 * (example * MAPS + map) + 1] = of_dy_x;
}
