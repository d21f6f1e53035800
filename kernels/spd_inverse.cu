// kernels/spd_inverse.cu: inverses of several symmetric positive definite matrices at once.
//
// A sweep over the pivots K, with D the inverse of the pivot block A_KK, replaces
//     A_KK by -D,   A_RK by A_RK D,   A_RR by A_RR - A_RK D A_KR;
// after one sweep over every block of 32 pivots, A is minus its own inverse (blocked Gauss-Jordan
// without pivoting). With U = A's columns K, its rows K replaced by minus the identity, all three
// are one formula: A with zeros in rows and columns K, minus U D U^T.
//
//   spd_damp    factors, damped by Eq. 21 -> swept
//   spd_sweep   one sweep of all matrices, from one buffer to the other: a block cannot overwrite
//               columns that others still read
//   spd_adopt   minus the swept matrices, mirrored -> inverses, where both of a pair succeeded
//
// The matrices (side, side), of the SIDES, lie one behind the other, Omega and Gamma of a layer in
// pairs; only what is on and above the diagonal is read again. A matrix of n rows is through after
// ceil(n / 32) sweeps, in the buffer that the last of them wrote; later ones leave it alone.
// spd_damp, spd_adopt: a block has CHUNK neighbours of one matrix, a thread every 256th of them.
// spd_sweep: a block has a tile of 64 x 64 on or above the diagonal, inverts the pivot block for
// itself and leaves 16 entries to each of 256 threads. failed is 1 for a matrix with a pivot that
// is not positive.
// Launcher: kfcnet/ops/cuda/inverse.py. Contract: kfcnet/ops/primitives.py. Tests:
// tests/test_ops.py.
// Operations side^2*(side + TILE) a matrix for its tiles on and above the diagonal, half as many
// for their U D, a quarter for the pivot blocks, which every tile inverts for itself; limited by
// latency: the sweeps wait for each other.
#include "block_sum.cuh"
#include "tile_pair.cuh"

constexpr int PIVOTS = 32, TILE = 64, THREADS = 256, PITCH = PIVOTS + 1, SPAN = TILE / 16;
constexpr int CHUNK = 4096;
constexpr float FLT_LARGE = 1e30f;  // the reciprocal of a pivot that is as good as zero
static_assert(COUNT % 2 == 0, "a layer has two factors");

struct Tile {
    int matrix, side, offset;  // of the matrix
    int row, column;           // of the tile in it, row <= column
};

__device__ __forceinline__ Tile tile_at(int index) {
    constexpr int sides[] = {SIDES};
    int offset = 0, matrix = 0;
    while (true) {
        const int side = sides[matrix], tiles = (side + TILE - 1) / TILE;
        const int pairs = tiles * (tiles + 1) / 2;
        if (index < pairs) {
            const Pair pair = pair_at(index, tiles);
            return {matrix, side, offset, pair.row, pair.column};
        }
        index -= pairs;
        offset += side * side;
        ++matrix;
    }
}

struct Part {
    int matrix, side, offset;  // of the matrix
    int first, end;            // of the part in it
};

__device__ __forceinline__ Part part_at(int index) {
    constexpr int sides[] = {SIDES};
    int offset = 0, matrix = 0;
    while (true) {
        const int side = sides[matrix], size = side * side, parts = (size + CHUNK - 1) / CHUNK;
        if (index < parts)
            return {matrix, side, offset, index * CHUNK, min(index * CHUNK + CHUNK, size)};
        index -= parts;
        offset += size;
        ++matrix;
    }
}

__device__ __forceinline__ int side_of(int matrix) {
    constexpr int sides[] = {SIDES};
    return sides[matrix];
}

// The mean of a diagonal, for thread 0.
__device__ __forceinline__ float mean_diagonal(const float* a, int side) {
    float sum = 0.0f;
    for (int i = threadIdx.x; i < side; i += THREADS) sum += a[i * side + i];
    return block_sum(sum) / side;
}

__device__ __forceinline__ float entry(const float* a, int side, int row, int column) {
    return row <= column ? a[row * side + column] : a[column * side + row];
}

// Rows first ... of U; zero outside of the matrix.
__device__ __forceinline__ void load_panel(float (*panel)[PITCH], const float* a, int side,
                                           int first, int pivot) {
    const bool along_row = first / TILE <= pivot / TILE;  // neighbours in memory
    for (int i = threadIdx.x; i < TILE * PIVOTS; i += THREADS) {
        const int r = along_row ? i / PIVOTS : i % TILE, p = along_row ? i % PIVOTS : i / TILE;
        const int row = first + r, column = pivot + p;
        float value = 0.0f;
        if (row >= pivot && row < pivot + PIVOTS)
            value = row == column ? -1.0f : 0.0f;
        else if (row < side && column < side)
            value = entry(a, side, row, column);
        panel[r][p] = value;
    }
}

// D by sweeps over single pivots, four entries a thread; false where one is not positive. Rows
// beyond the matrix are those of the identity. The last barrier is the caller's.
__device__ __forceinline__ bool invert_pivots(float (*inverse)[PITCH], float (*columns)[PIVOTS],
                                              const float* a, int side, int pivot) {
    const int i = threadIdx.x / 8, first = threadIdx.x % 8 * 4;
    float entries[4];
    for (int l = 0; l < 4; ++l) {
        const int row = pivot + i, column = pivot + first + l;
        entries[l] = row < side && column < side ? entry(a, side, row, column) : row == column;
    }
    bool is_positive = true;
    for (int s = 0; s < PIVOTS; ++s) {
        float* column = columns[s % 2];  // two, so that one barrier a pivot is enough
        for (int l = 0; l < 4; ++l)
            if (first + l == s) column[i] = entries[l];
        __syncthreads();  // column s is complete, and the one before has been read
        const float scale = 1.0f / column[s], here = column[i];
        is_positive = is_positive && column[s] > 0.0f && scale > 0.0f && scale < FLT_LARGE;
        for (int l = 0; l < 4; ++l) {
            const float there = column[first + l];
            const bool in_row = i == s, in_column = first + l == s;
            if (in_row || in_column)
                entries[l] = (in_row && in_column ? -1.0f : in_row ? there : here) * scale;
            else
                entries[l] -= here * there * scale;
        }
    }
    for (int l = 0; l < 4; ++l) inverse[i][first + l] = -entries[l];
    return is_positive;
}

// pi of Eq. 8 in the trace norm, and what Eq. 21 adds: pi * sqrt(c) to Omega, sqrt(c) / pi to Gamma.
extern "C" __global__ void __launch_bounds__(THREADS) spd_damp(
    const float* __restrict__ factors,  // (TOTAL)
    const float* __restrict__ damping,  // (COUNT / 2)
    float* __restrict__ swept) {        // (TOTAL)
    __shared__ float shift;
    const Part part = part_at(blockIdx.x);
    const bool is_gamma = part.matrix % 2;
    const int other = side_of(is_gamma ? part.matrix - 1 : part.matrix + 1);
    const float* matrix = factors + part.offset;
    const float own_mean = mean_diagonal(matrix, part.side);
    const float other_mean =
        mean_diagonal(is_gamma ? matrix - other * other : matrix + part.side * part.side, other);
    if (threadIdx.x == 0) {
        // The roots come first: the ratio of the means may overflow. For Gamma pi is the inverse.
        const bool defined = own_mean > 0.0f && other_mean > 0.0f;
        const float pi = defined ? sqrtf(own_mean) / sqrtf(other_mean) : 1.0f;
        shift = pi * sqrtf(damping[part.matrix / 2]);
    }
    __syncthreads();  // the shift is there
    for (int i = part.first + threadIdx.x; i < part.end; i += THREADS)
        swept[part.offset + i] = matrix[i] + (i / part.side == i % part.side ? shift : 0.0f);
}

extern "C" __global__ void __launch_bounds__(THREADS) spd_sweep(
    const float* __restrict__ from,  // (TOTAL)
    float* __restrict__ to,          // (TOTAL)
    int* __restrict__ failed,        // (COUNT)
    int step) {
    __shared__ float left[TILE][PITCH], right[TILE][PITCH];
    __shared__ float inverse[PIVOTS][PITCH], columns[2][PIVOTS];
    const Tile tile = tile_at(blockIdx.x);
    const int side = tile.side, pivot = step * PIVOTS;
    if (pivot >= side) return;
    const float* a = from + tile.offset;
    load_panel(left, a, side, tile.row * TILE, pivot);
    load_panel(right, a, side, tile.column * TILE, pivot);
    const bool is_positive = invert_pivots(inverse, columns, a, side, pivot);
    if (tile.column == 0 && threadIdx.x == 0 && (step == 0 || !is_positive))
        failed[tile.matrix] = !is_positive;
    __syncthreads();  // both panels and the inverse are complete

    const int r = threadIdx.x / 4, q = threadIdx.x % 4 * 8;
    float product[8] = {};
    for (int p = 0; p < PIVOTS; ++p)
        for (int l = 0; l < 8; ++l) product[l] += left[r][p] * inverse[p][q + l];
    __syncthreads();  // the left panel has been read
    for (int l = 0; l < 8; ++l) left[r][q + l] = product[l];
    __syncthreads();  // and is now U D

    const int y = threadIdx.x / 16, x = threadIdx.x % 16;
    float sum[SPAN][SPAN] = {};
    for (int p = 0; p < PIVOTS; ++p)
        for (int i = 0; i < SPAN; ++i)
            for (int j = 0; j < SPAN; ++j)
                sum[i][j] += left[y + 16 * i][p] * right[x + 16 * j][p];
    for (int i = 0; i < SPAN; ++i) {
        const int row = tile.row * TILE + y + 16 * i;
        for (int j = 0; j < SPAN; ++j) {
            const int column = tile.column * TILE + x + 16 * j;
            if (row >= side || column >= side) continue;
            const bool is_pivot = row / PIVOTS == step || column / PIVOTS == step;
            const int place = tile.offset + row * side + column;
            to[place] = (is_pivot ? 0.0f : from[place]) - sum[i][j];
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) spd_adopt(
    const float* __restrict__ even,  // (TOTAL)
    const float* __restrict__ odd,   // (TOTAL)
    const int* __restrict__ failed,  // (COUNT)
    float* __restrict__ inverses,    // (TOTAL)
    int* __restrict__ failures) {    // (COUNT / 2)
    const Part part = part_at(blockIdx.x);
    const int pair = part.matrix / 2;
    if (failed[2 * pair] || failed[2 * pair + 1]) {  // the old ones stay
        if (part.matrix % 2 == 0 && part.first == 0 && threadIdx.x == 0) ++failures[pair];
        return;
    }
    const int sweeps = (part.side + PIVOTS - 1) / PIVOTS;
    const float* swept = (sweeps % 2 ? odd : even) + part.offset;
    for (int i = part.first + threadIdx.x; i < part.end; i += THREADS)
        inverses[part.offset + i] = -entry(swept, part.side, i / part.side, i % part.side);
}
