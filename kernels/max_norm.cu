// kernels/max_norm.cu: the weights of a unit whose norm is above a limit, scaled down to it.
//
// weight, average (rows, columns), in place. Where the Euclidean norm of row i without column 0,
// the bias, is above `limit`, the row is scaled down to it; a NaN is passed on. average has already
// taken in the longer row with averaging_decay, and takes its part of the change:
//   average += (1 - averaging_decay) * (shortened - weight)
// Where nonfinite_step is not negative nothing changes: see training_state.cu.
//
// One block: one row. The norm is summed in a fixed order.
// Launcher: kfcnet/ops/cuda/updates.py. Contract: kfcnet/ops/primitives.py. Tests:
// tests/test_cuda.py.
// Bytes an element: 4, and 16 more where a row is too long; limited by memory.
#include "block_sum.cuh"

extern "C" __global__ void max_norm(
    const float* __restrict__ averaging_decay,     // (1)
    const long long* __restrict__ nonfinite_step,  // or null: (1)
    float* __restrict__ weight,                    // (rows, columns)
    float* __restrict__ average,                   // (rows, columns)
    int rows,
    int columns,
    float limit) {
    if (nonfinite_step && *nonfinite_step >= 0) return;
    __shared__ float shared_norm;
    float* row = weight + (long long)blockIdx.x * columns;
    float* average_row = average + (long long)blockIdx.x * columns;
    float squares = 0.0f;
    for (int i = 1 + threadIdx.x; i < columns; i += blockDim.x) squares += row[i] * row[i];
    squares = block_sum(squares);
    if (threadIdx.x == 0) shared_norm = sqrtf(squares);
    __syncthreads();  // the norm is there
    const float norm = shared_norm;
    if (norm <= limit) return;
    for (int i = 1 + threadIdx.x; i < columns; i += blockDim.x) {
        const float shorter = row[i] * (limit / norm);
        average_row[i] += (1.0f - *averaging_decay) * (shorter - row[i]);
        row[i] = shorter;
    }
}
