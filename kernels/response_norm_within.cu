// kernels/response_norm_within.cu: response normalisation within maps, forward, backward, tangent.
//
// All arrays (M, HEIGHT, WIDTH, MAPS). N(i) is the SIZE x SIZE pixels from i - SIZE/2 on, of the
// same map, clipped at the border; p = POWER:
//   forward   d_i = 1 + alpha * sum over j in N(i) of x_j^2,   y_i = x_i d_i^-p
//   backward  dx_i = dy_i d_i^-p - 2 alpha p x_i * sum over j with i in N(j) of dy_j x_j d_j^(-p-1)
//   tangent   ry_i = rx_i d_i^-p - 2 alpha p x_i d_i^(-p-1) * sum over j in N(i) of x_j rx_j
//
// Forward, tangent: one thread, LANES maps of one pixel. Backward: one block, TILE_ROWS rows of
// TILE_GROUPS groups of LANES maps of one image: it forms each term of the sum once, in shared
// memory, because the powers would cost more than the memory if every neighbour formed them anew.
// Launcher: kfcnet/ops/cuda/elementwise.py. Contract: kfcnet/ops/primitives.py. Tests:
// tests/test_kernels_elementwise.py.
// Bytes an element: 12 forward, 16 backward, 16 tangent.
#include "image.cuh"
#include "response_norm.cuh"

constexpr int BEFORE = SIZE / 2;          // N(i) reaches this far up and left,
constexpr int AFTER = SIZE - 1 - BEFORE;  // and this far down and right

extern "C" __global__ void response_norm_within(
    const float* __restrict__ x,  // aligned (M, HEIGHT, WIDTH, MAPS)
    float* __restrict__ y,        // aligned (M, HEIGHT, WIDTH, MAPS)
    float* __restrict__ d,        // aligned (M, HEIGHT, WIDTH, MAPS)
    int M,
    float alpha) {
    const unsigned thread = blockIdx.x * blockDim.x + threadIdx.x;
    if (thread >= unsigned(M * HEIGHT * WIDTH * GROUPS)) return;
    const Place place = place_of<HEIGHT, WIDTH>(thread);

    Maps sum = {};
    for (int r = -BEFORE; r <= AFTER; ++r) {
#pragma unroll
        for (int c = -BEFORE; c <= AFTER; ++c) {
            const Place near = {place.image, inside(place.row + r, HEIGHT),
                                inside(place.column + c, WIDTH), place.map};
            const Maps value = load<LANES>(x + offset_of<HEIGHT, WIDTH>(near));
            const bool counts = near.row == place.row + r && near.column == place.column + c;
            for (int lane = 0; lane < LANES; ++lane)
                sum[lane] += counts ? value[lane] * value[lane] : 0.0f;
        }
    }
    const int offset = offset_of<HEIGHT, WIDTH>(place);
    Maps value = load<LANES>(x + offset);
    for (int lane = 0; lane < LANES; ++lane) {
        sum[lane] = 1.0f + alpha * sum[lane];
        value[lane] *= inverse_power(sum[lane]);
    }
    store(d + offset, sum);
    store(y + offset, value);
}

extern "C" __global__ void response_norm_within_backward(
    const float* __restrict__ dy,  // aligned (M, HEIGHT, WIDTH, MAPS)
    const float* __restrict__ x,   // aligned (M, HEIGHT, WIDTH, MAPS)
    const float* __restrict__ d,   // aligned (M, HEIGHT, WIDTH, MAPS)
    float* __restrict__ dx,        // aligned (M, HEIGHT, WIDTH, MAPS)
    int M,
    float alpha) {
    // terms[AFTER + r] is the tile's row r: the rows above and below that its sums need come along.
    __shared__ Maps terms[TILE_ROWS + SIZE - 1][WIDTH][TILE_GROUPS];
    constexpr int ROW = WIDTH * TILE_GROUPS;
    const int first_row = blockIdx.y * TILE_ROWS, first_group = blockIdx.z * TILE_GROUPS;

    for (int i = threadIdx.x; i < (TILE_ROWS + SIZE - 1) * ROW; i += blockDim.x) {
        const int row = first_row + i / ROW - AFTER, group = first_group + i % TILE_GROUPS;
        const int column = i % ROW / TILE_GROUPS;
        Maps term = {};
        if (row >= 0 && row < HEIGHT && group < GROUPS) {
            const Place place = {int(blockIdx.x), row, column, group * LANES};
            const int offset = offset_of<HEIGHT, WIDTH>(place);
            const Maps dy_near = load<LANES>(dy + offset), x_near = load<LANES>(x + offset);
            const Maps d_near = load<LANES>(d + offset);
            for (int lane = 0; lane < LANES; ++lane)
                term[lane] = dy_near[lane] * x_near[lane] * inverse_power(d_near[lane]) /
                             d_near[lane];
        }
        terms[i / ROW][column][i % TILE_GROUPS] = term;
    }
    __syncthreads();  // every term is there before neighbours sum them

    for (int i = threadIdx.x; i < TILE_ROWS * ROW; i += blockDim.x) {
        const int row = i / ROW, column = i % ROW / TILE_GROUPS, group = i % TILE_GROUPS;
        if (first_row + row >= HEIGHT || first_group + group >= GROUPS) continue;
        Maps sum = {};
        for (int r = 0; r < SIZE; ++r) {
#pragma unroll
            for (int c = -AFTER; c <= BEFORE; ++c) {
                if (column + c < 0 || column + c >= WIDTH) continue;
                const Maps term = terms[row + r][column + c][group];
                for (int lane = 0; lane < LANES; ++lane) sum[lane] += term[lane];
            }
        }
        const Place place = {int(blockIdx.x), first_row + row, column,
                             (first_group + group) * LANES};
        const int offset = offset_of<HEIGHT, WIDTH>(place);
        const Maps dy_here = load<LANES>(dy + offset), x_here = load<LANES>(x + offset);
        const Maps d_here = load<LANES>(d + offset);
        for (int lane = 0; lane < LANES; ++lane)
            sum[lane] = dy_here[lane] * inverse_power(d_here[lane]) -
                        2.0f * alpha * POWER * x_here[lane] * sum[lane];
        store(dx + offset, sum);
    }
}

extern "C" __global__ void response_norm_within_tangent(
    const float* __restrict__ rx,  // aligned (M, HEIGHT, WIDTH, MAPS)
    const float* __restrict__ x,   // aligned (M, HEIGHT, WIDTH, MAPS)
    const float* __restrict__ d,   // aligned (M, HEIGHT, WIDTH, MAPS)
    float* __restrict__ ry,        // aligned (M, HEIGHT, WIDTH, MAPS)
    int M,
    float alpha) {
    const unsigned thread = blockIdx.x * blockDim.x + threadIdx.x;
    if (thread >= unsigned(M * HEIGHT * WIDTH * GROUPS)) return;
    const Place place = place_of<HEIGHT, WIDTH>(thread);

    Maps sum = {};
    for (int r = -BEFORE; r <= AFTER; ++r) {
#pragma unroll
        for (int c = -BEFORE; c <= AFTER; ++c) {
            const Place near = {place.image, inside(place.row + r, HEIGHT),
                                inside(place.column + c, WIDTH), place.map};
            const int offset = offset_of<HEIGHT, WIDTH>(near);
            const Maps x_near = load<LANES>(x + offset), rx_near = load<LANES>(rx + offset);
            const bool counts = near.row == place.row + r && near.column == place.column + c;
            for (int lane = 0; lane < LANES; ++lane)
                sum[lane] += counts ? x_near[lane] * rx_near[lane] : 0.0f;
        }
    }
    const int offset = offset_of<HEIGHT, WIDTH>(place);
    const Maps x_here = load<LANES>(x + offset), d_here = load<LANES>(d + offset);
    Maps value = load<LANES>(rx + offset);
    for (int lane = 0; lane < LANES; ++lane)
        value[lane] = inverse_power(d_here[lane]) *
            (value[lane] - 2.0f * alpha * POWER * x_here[lane] / d_here[lane] * sum[lane]);
    store(ry + offset, value);
}
