// kernels/max_pool_norm.cu: a maximum pool, the ReLU and the response normalisation behind it.
//
// x (M, HEIGHT, WIDTH, MAPS) -> pooled, argmax as in max_pool.cu with RELU 1, then y and d as in
// response_norm_within.cu, of the pooled pixels, with windows of NORM_SIZE x NORM_SIZE: all
// (M, OUT_HEIGHT, OUT_WIDTH, MAPS). Backward and tangent go through both.
//
// What is between the two stays in shared memory: a launch less each way, and the pooled pixels are
// neither read again nor their derivatives written.
// One block: TILE_GROUPS groups of LANES maps of one image, all of its pixels.
// Launcher: kfcnet/ops/cuda/elementwise.py. Contract: kfcnet/ops/primitives.py. Tests:
// tests/test_max_pool_norm.py.
// Bytes, with x elements of input and y of output: 4x + 13y each, of the tangent at most: it reads
// x at the maxima only; limited by memory.
#include "image.cuh"
#include "max_window.cuh"
#include "response_norm.cuh"

using Windows = MaxWindows<LANES, SIZE, STRIDE, HEIGHT, WIDTH, OUT_HEIGHT, OUT_WIDTH>;
constexpr int PIXELS = OUT_HEIGHT * OUT_WIDTH, ITEMS = PIXELS * TILE_GROUPS;
constexpr int BEFORE = NORM_SIZE / 2, AFTER = NORM_SIZE - 1 - BEFORE;  // as in response_norm_within

// The output pixel and the maps of item i of a block; items of groups that are not there are left
// out.
__device__ __forceinline__ Place item_place(int i) {
    const int pixel = i / TILE_GROUPS, group = blockIdx.y * TILE_GROUPS + i % TILE_GROUPS;
    return {int(blockIdx.x), pixel / OUT_WIDTH, pixel % OUT_WIDTH, group * LANES};
}

// The maps of a pixel in a tile of the image.
using ImageTile = Maps[PIXELS][TILE_GROUPS];
__device__ __forceinline__ Maps at(const ImageTile& tile, int pixel, int group) {
    return load<LANES>(tile[pixel][group].at);
}

// The sum of term(pixel) over the pixels of the image from `before` up and left to `after`
// down and right of a pixel.
template <class Term>
__device__ __forceinline__ Maps sum_near(const Place& place, int before, int after, Term term) {
    Maps sum = {};
    for (int row = max(place.row - before, 0); row <= min(place.row + after, OUT_HEIGHT - 1); ++row)
        for (int column = max(place.column - before, 0);
             column <= min(place.column + after, OUT_WIDTH - 1); ++column) {
            const Maps value = term(row * OUT_WIDTH + column);
            for (int lane = 0; lane < LANES; ++lane) sum[lane] += value[lane];
        }
    return sum;
}

extern "C" __global__ void max_pool_norm(
    const float* __restrict__ x,         // aligned (M, HEIGHT, WIDTH, MAPS)
    float* __restrict__ pooled,          // aligned (M, OUT_HEIGHT, OUT_WIDTH, MAPS)
    unsigned char* __restrict__ argmax,  // aligned (M, OUT_HEIGHT, OUT_WIDTH, MAPS)
    float* __restrict__ y,               // aligned (M, OUT_HEIGHT, OUT_WIDTH, MAPS)
    float* __restrict__ d,               // aligned (M, OUT_HEIGHT, OUT_WIDTH, MAPS)
    int M,
    float alpha) {
    __shared__ ImageTile values;
    for (int i = threadIdx.x; i < ITEMS; i += blockDim.x) {
        const Place out = item_place(i);
        if (out.map >= MAPS) continue;
        Offsets<LANES> where = {};
        Maps best = Windows::maximum(out.row, out.column, where, [&](int row, int column) {
            return load<LANES>(x + offset_of<HEIGHT, WIDTH>({out.image, row, column, out.map}));
        });
        for (int lane = 0; lane < LANES; ++lane)
            if (best[lane] < 0.0f) best[lane] = 0.0f;
        const int offset = offset_of<OUT_HEIGHT, OUT_WIDTH>(out);
        store(pooled + offset, best);
        store(argmax + offset, where);
        values[i / TILE_GROUPS][i % TILE_GROUPS] = best;
    }
    __syncthreads();  // the image is pooled before neighbours are summed

    for (int i = threadIdx.x; i < ITEMS; i += blockDim.x) {
        const Place out = item_place(i);
        if (out.map >= MAPS) continue;
        Maps sum = sum_near(out, BEFORE, AFTER, [&](int pixel) {
            Maps value = at(values, pixel, i % TILE_GROUPS);
            for (int lane = 0; lane < LANES; ++lane) value[lane] *= value[lane];
            return value;
        });
        Maps value = at(values, i / TILE_GROUPS, i % TILE_GROUPS);
        for (int lane = 0; lane < LANES; ++lane) {
            sum[lane] = 1.0f + alpha * sum[lane];
            value[lane] *= inverse_power(sum[lane]);
        }
        const int offset = offset_of<OUT_HEIGHT, OUT_WIDTH>(out);
        store(d + offset, sum);
        store(y + offset, value);
    }
}

extern "C" __global__ void max_pool_norm_backward(
    const float* __restrict__ dy,              // aligned (M, OUT_HEIGHT, OUT_WIDTH, MAPS)
    const float* __restrict__ pooled,          // aligned (M, OUT_HEIGHT, OUT_WIDTH, MAPS)
    const unsigned char* __restrict__ argmax,  // aligned (M, OUT_HEIGHT, OUT_WIDTH, MAPS)
    const float* __restrict__ d,               // aligned (M, OUT_HEIGHT, OUT_WIDTH, MAPS)
    float* __restrict__ dx,                    // aligned (M, HEIGHT, WIDTH, MAPS)
    int M,
    float alpha) {
    // Terms of the sums over neighbours, and the derivatives of the pooled pixels.
    __shared__ ImageTile terms, derivatives;
    for (int i = threadIdx.x; i < ITEMS; i += blockDim.x) {
        const Place out = item_place(i);
        if (out.map >= MAPS) continue;
        const int offset = offset_of<OUT_HEIGHT, OUT_WIDTH>(out);
        const Maps dy_here = load<LANES>(dy + offset), x_here = load<LANES>(pooled + offset);
        const Maps d_here = load<LANES>(d + offset);
        Maps term, derivative;
        for (int lane = 0; lane < LANES; ++lane) {
            derivative[lane] = dy_here[lane] * inverse_power(d_here[lane]);
            term[lane] = derivative[lane] * x_here[lane] / d_here[lane];
        }
        terms[i / TILE_GROUPS][i % TILE_GROUPS] = term;
        derivatives[i / TILE_GROUPS][i % TILE_GROUPS] = derivative;
    }
    __syncthreads();  // every term is there before neighbours sum them

    for (int i = threadIdx.x; i < ITEMS; i += blockDim.x) {
        const Place out = item_place(i);
        if (out.map >= MAPS) continue;
        const Maps sum = sum_near(
            out, AFTER, BEFORE, [&](int pixel) { return at(terms, pixel, i % TILE_GROUPS); });
        const Maps x_here = load<LANES>(pooled + offset_of<OUT_HEIGHT, OUT_WIDTH>(out));
        Maps derivative = at(derivatives, i / TILE_GROUPS, i % TILE_GROUPS);
        for (int lane = 0; lane < LANES; ++lane) {
            const float through = derivative[lane] - 2.0f * alpha * POWER * x_here[lane] * sum[lane];
            derivative[lane] = x_here[lane] > 0.0f ? through : 0.0f;  // the ReLU
        }
        derivatives[i / TILE_GROUPS][i % TILE_GROUPS] = derivative;
    }
    __syncthreads();  // all derivatives are there before pixels look for theirs

    for (int i = threadIdx.x; i < HEIGHT * WIDTH * TILE_GROUPS; i += blockDim.x) {
        const int pixel = i / TILE_GROUPS, group = blockIdx.y * TILE_GROUPS + i % TILE_GROUPS;
        if (group >= GROUPS) continue;
        const Place in = {int(blockIdx.x), pixel / WIDTH, pixel % WIDTH, group * LANES};
        const Maps sum = Windows::sum_where_maximal(
            in.row, in.column,
            [&](int row, int column) {
                return at(derivatives, row * OUT_WIDTH + column, i % TILE_GROUPS);
            },
            [&](int row, int column) {
                const Place out = {in.image, row, column, in.map};
                return load<LANES>(argmax + offset_of<OUT_HEIGHT, OUT_WIDTH>(out));
            });
        store(dx + offset_of<HEIGHT, WIDTH>(in), sum);
    }
}

extern "C" __global__ void max_pool_norm_tangent(
    const float* __restrict__ rx,              // aligned (M, HEIGHT, WIDTH, MAPS)
    const float* __restrict__ pooled,          // aligned (M, OUT_HEIGHT, OUT_WIDTH, MAPS)
    const unsigned char* __restrict__ argmax,  // aligned (M, OUT_HEIGHT, OUT_WIDTH, MAPS)
    const float* __restrict__ d,               // aligned (M, OUT_HEIGHT, OUT_WIDTH, MAPS)
    float* __restrict__ ry,                    // aligned (M, OUT_HEIGHT, OUT_WIDTH, MAPS)
    int M,
    float alpha) {
    __shared__ ImageTile tangents, terms;
    for (int i = threadIdx.x; i < ITEMS; i += blockDim.x) {
        const Place out = item_place(i);
        if (out.map >= MAPS) continue;
        const int offset = offset_of<OUT_HEIGHT, OUT_WIDTH>(out);
        const Maps x_here = load<LANES>(pooled + offset);
        Maps term, tangent = Windows::at_maximum(
            out.row, out.column, load<LANES>(argmax + offset), [&](int row, int column, int lane) {
                return rx[offset_of<HEIGHT, WIDTH>({out.image, row, column, out.map + lane})];
            });
        for (int lane = 0; lane < LANES; ++lane) {
            tangent[lane] = x_here[lane] > 0.0f ? tangent[lane] : 0.0f;  // the ReLU
            term[lane] = x_here[lane] * tangent[lane];
        }
        tangents[i / TILE_GROUPS][i % TILE_GROUPS] = tangent;
        terms[i / TILE_GROUPS][i % TILE_GROUPS] = term;
    }
    __syncthreads();  // every term is there before neighbours sum them

    for (int i = threadIdx.x; i < ITEMS; i += blockDim.x) {
        const Place out = item_place(i);
        if (out.map >= MAPS) continue;
        const Maps sum = sum_near(
            out, BEFORE, AFTER, [&](int pixel) { return at(terms, pixel, i % TILE_GROUPS); });
        const int offset = offset_of<OUT_HEIGHT, OUT_WIDTH>(out);
        const Maps x_here = load<LANES>(pooled + offset), d_here = load<LANES>(d + offset);
        Maps value = at(tangents, i / TILE_GROUPS, i % TILE_GROUPS);
        for (int lane = 0; lane < LANES; ++lane)
            value[lane] = inverse_power(d_here[lane]) *
                (value[lane] - 2.0f * alpha * POWER * x_here[lane] / d_here[lane] * sum[lane]);
        store(ry + offset, value);
    }
}
