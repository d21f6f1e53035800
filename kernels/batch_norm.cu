// kernels/batch_norm.cu: every map to zero mean and unit variance over the batch; the derivative.
//
// x, y, dy, dx (rows, MAPS): rows are all pixels of all images.
//   forward   mean = E[x], inv_std = (E[(x - mean)^2] + epsilon)^-1/2, y = (x - mean) * inv_std
//   backward  dx = inv_std * (dy - E[dy] - y * E[dy * y]), through mean and variance; the Jacobian
//             is symmetric, so this is the tangent too
//
// Three launches each way: sums over slices of the rows, their ordered sum, the elementwise part.
// Forward sums are of x - x[0], map by map: where a map's mean is large against its deviation the
// squares would cancel otherwise. Blocks of *_slices and *_moments are (32 maps, 8 lanes): a lane
// takes every eighth row of the block's slice, or every eighth slice. The elementwise part: one
// thread, four neighbours.
// Launcher: kfcnet/ops/cuda/elementwise.py. Contract: kfcnet/ops/primitives.py. Tests:
// tests/test_kernels_elementwise.py.
// Bytes an element: 12 forward, 20 backward; limited by memory.
#include "row_lanes.cuh"
#include "vector_load.cuh"

// partials[:, slice] of one map: the sums of first(row) and second(row) over the slice.
template <class First, class Second>
__device__ __forceinline__ void sum_slice(float* partials, int rows, int slices, int map,
                                          First first, Second second) {
    const int slice = blockIdx.x, rows_each = (rows + slices - 1) / slices;
    const int end = min(rows, (slice + 1) * rows_each);
    float sum = 0.0f, sum_of_second = 0.0f;
    if (map < MAPS)
        for (int row = slice * rows_each + threadIdx.y; row < end; row += ROW_LANES) {
            sum += first(row);
            sum_of_second += second(row);
        }
    sum = sum_row_lanes(sum);
    sum_of_second = sum_row_lanes(sum_of_second);
    if (threadIdx.y == 0 && map < MAPS) {
        partials[slice * MAPS + map] = sum;
        partials[(slices + slice) * MAPS + map] = sum_of_second;
    }
}

// The mean over the rows from the slices' sums of one map; every row lane adds up some slices.
__device__ __forceinline__ float mean_of_slices(const float* partials, int rows, int slices,
                                                int map) {
    float sum = 0.0f;
    if (map < MAPS)
        for (int slice = threadIdx.y; slice < slices; slice += ROW_LANES)
            sum += partials[slice * MAPS + map];
    return sum_row_lanes(sum) / rows;
}

extern "C" __global__ void batch_norm_slices(
    const float* __restrict__ x,   // (rows, MAPS)
    float* __restrict__ partials,  // (2, slices, MAPS)
    int rows,
    int slices) {
    const int map = blockIdx.y * 32 + threadIdx.x;
    const float origin = map < MAPS ? x[map] : 0.0f;
    const auto shifted = [&](int row) { return x[row * MAPS + map] - origin; };
    sum_slice(partials, rows, slices, map, shifted,
              [&](int row) { return shifted(row) * shifted(row); });
}

extern "C" __global__ void batch_norm_moments(
    const float* __restrict__ x,         // (rows, MAPS)
    const float* __restrict__ partials,  // (2, slices, MAPS)
    float* __restrict__ mean,            // (MAPS)
    float* __restrict__ inv_std,         // (MAPS)
    int rows,
    int slices,
    float epsilon) {
    const int map = blockIdx.x * 32 + threadIdx.x;
    const float shift = mean_of_slices(partials, rows, slices, map);
    const float square = mean_of_slices(partials + slices * MAPS, rows, slices, map);
    if (threadIdx.y > 0 || map >= MAPS) return;
    const float variance = square - shift * shift;
    mean[map] = x[map] + shift;
    inv_std[map] = 1.0f / sqrtf((variance < 0.0f ? 0.0f : variance) + epsilon);
}

// Where processes share the batch: inv_std from the squares of x - mean, their mean over all.
// One thread a map.
extern "C" __global__ void batch_norm_inv_std(
    const float* __restrict__ squares,  // (MAPS)
    float* __restrict__ inv_std,        // (MAPS)
    float epsilon) {
    const int map = blockIdx.x * blockDim.x + threadIdx.x;
    if (map < MAPS) inv_std[map] = 1.0f / sqrtf(squares[map] + epsilon);
}

extern "C" __global__ void batch_norm_apply(
    const float* __restrict__ x,        // (rows, MAPS)
    const float* __restrict__ mean,     // (MAPS)
    const float* __restrict__ inv_std,  // (MAPS)
    float* __restrict__ y,              // (rows, MAPS)
    int rows) {
    const unsigned first = first_of_four();
    if (first >= rows * MAPS) return;
    Vector<float, 4> value = load_four(x, first, rows * MAPS);
    for (int lane = 0; lane < 4; ++lane) {
        const int map = (first + lane) % MAPS;
        value[lane] = (value[lane] - mean[map]) * inv_std[map];
    }
    store_four(y, first, rows * MAPS, value);
}

extern "C" __global__ void batch_norm_backward_slices(
    const float* __restrict__ dy,  // (rows, MAPS)
    const float* __restrict__ y,   // (rows, MAPS)
    float* __restrict__ partials,  // (2, slices, MAPS)
    int rows,
    int slices) {
    const int map = blockIdx.y * 32 + threadIdx.x;
    sum_slice(partials, rows, slices, map, [&](int row) { return dy[row * MAPS + map]; },
              [&](int row) { return dy[row * MAPS + map] * y[row * MAPS + map]; });
}

extern "C" __global__ void batch_norm_backward_moments(
    const float* __restrict__ partials,  // (2, slices, MAPS)
    float* __restrict__ mean_dy,         // (MAPS)
    float* __restrict__ mean_dy_y,       // (MAPS)
    int rows,
    int slices) {
    const int map = blockIdx.x * 32 + threadIdx.x;
    const float of_dy = mean_of_slices(partials, rows, slices, map);
    const float of_dy_y = mean_of_slices(partials + slices * MAPS, rows, slices, map);
    if (threadIdx.y > 0 || map >= MAPS) return;
    mean_dy[map] = of_dy;
    mean_dy_y[map] = of_dy_y;
}

extern "C" __global__ void batch_norm_backward(
    const float* __restrict__ dy,         // (rows, MAPS)
    const float* __restrict__ y,          // (rows, MAPS)
    const float* __restrict__ inv_std,    // (MAPS)
    const float* __restrict__ mean_dy,    // (MAPS)
    const float* __restrict__ mean_dy_y,  // (MAPS)
    float* __restrict__ dx,               // (rows, MAPS)
    int rows) {
    const unsigned first = first_of_four();
    if (first >= rows * MAPS) return;
    Vector<float, 4> value = load_four(dy, first, rows * MAPS);
    const Vector<float, 4> normal = load_four(y, first, rows * MAPS);
    for (int lane = 0; lane < 4; ++lane) {
        const int map = (first + lane) % MAPS;
        value[lane] = (value[lane] - mean_dy[map] - normal[lane] * mean_dy_y[map]) * inv_std[map];
    }
    store_four(dx, first, rows * MAPS, value);
}
