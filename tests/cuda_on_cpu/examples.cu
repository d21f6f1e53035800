// Correct kernels that use what kernels/ needs of CUDA C. Test: tests/test_cuda_on_cpu.py.
#include "tensor_core.cuh"
#include "vector_load.cuh"

// Row sums: shuffles in a warp, the warps' sums through dynamic shared memory.
extern "C" __global__ void row_sums(
    const float* x,  // (ROWS, COLUMNS)
    float* sums) {   // (ROWS)
    extern __shared__ float of_warps[];
    float value = 0.0f;
    for (int i = threadIdx.x; i < COLUMNS; i += blockDim.x) value += x[blockIdx.x * COLUMNS + i];
    for (int distance = 16; distance > 0; distance /= 2)
        value += __shfl_down_sync(0xffffffffu, value, distance);
    if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = value;
    __syncthreads();
    if (threadIdx.x > 0) return;
    for (int warp = 1; warp < int(blockDim.x) / 32; ++warp) value += of_warps[warp];
    sums[blockIdx.x] = value;
}

// Lanes hand values on through shared memory: only the warp has to meet.
extern "C" __global__ void warp_reverse(
    const float* x,  // (64)
    float* y) {      // (64)
    __shared__ float tile[64];
    tile[threadIdx.x] = x[threadIdx.x];
    __syncwarp();
    y[threadIdx.x] = tile[threadIdx.x ^ 31];
}

extern "C" __global__ void collectives(
    const int* x,  // (64)
    int* y) {      // (64, 7)
    const int value = x[threadIdx.x];
    int* of_thread = y + 7 * threadIdx.x;
    of_thread[0] = __shfl_sync(0xffffffffu, value, (threadIdx.x + 5) % 32);
    of_thread[1] = __shfl_up_sync(0xffffffffu, value, 3);
    of_thread[2] = __shfl_down_sync(0xffffffffu, value, 2, 8);
    of_thread[3] = __shfl_xor_sync(0xffffffffu, value, 9);
    of_thread[4] = __ballot_sync(0xffffffffu, value % 2);
    of_thread[5] = __any_sync(0xffffffffu, value == 7);
    of_thread[6] = __all_sync(0xffffffffu, value >= 0);
}

// One warp a tile of 16 x 8: C = A B with ROWS % 16 == COLUMNS % 8 == DEPTH % 8 == 0.
extern "C" __global__ void tensor_core_product(
    const float* a,  // (ROWS, DEPTH)
    const float* b,  // (DEPTH, COLUMNS)
    float* c) {      // (ROWS, COLUMNS)
    const int g = threadIdx.x / 4, t = threadIdx.x % 4;
    const int row = 16 * blockIdx.y + g, column = 8 * blockIdx.x;
    float sums[4] = {0.0f, 0.0f, 0.0f, 0.0f};
    for (int k = t; k < DEPTH; k += 8) {
        unsigned of_a[4], of_b[2];
        for (int i = 0; i < 4; ++i)
            of_a[i] = to_tf32(a[(row + i % 2 * 8) * DEPTH + k + i / 2 * 4]);
        for (int i = 0; i < 2; ++i) of_b[i] = to_tf32(b[(k + i * 4) * COLUMNS + column + g]);
        mma_m16n8k8_tf32(sums, of_a, of_b, sums);
    }
    for (int i = 0; i < 4; ++i)
        c[(row + i / 2 * 8) * COLUMNS + column + 2 * t + i % 2] = sums[i];
}

// A grid and blocks of three dimensions; every thread writes its own place.
extern "C" __global__ void places(
    int* y) {  // (3 * 2 * 4, 5 * 2 * 3)
    const int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    const int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    const int threads = blockDim.x * blockDim.y * blockDim.z;
    y[block * threads + thread] = 1000 * block + thread;
}

// A tile written in rows and read in columns, PITCH floats a row: 32 and 33 differ in bank
// conflicts. y is written STEP floats apart: 1 and 8 differ in sectors.
extern "C" __global__ void turns_a_tile(
    const float* x,  // aligned (32 * 32)
    float* y) {      // (32 * 32 * STEP)
    __shared__ float tile[32 * PITCH];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int row = warp; row < 32; row += 4) tile[row * PITCH + lane] = x[row * 32 + lane];
    __syncthreads();
    for (int row = warp; row < 32; row += 4)
        y[(row * 32 + lane) * STEP] = tile[lane * PITCH + row];
}

// 16 bytes a lane at once, of shared memory too; lanes above `lanes` have nothing to do.
extern "C" __global__ void moves_vectors(
    const float* x,  // aligned (128)
    float* y,        // aligned (128)
    int lanes) {
    __shared__ __align__(16) float tile[128];
    const int first = 4 * int(threadIdx.x);
    if (int(threadIdx.x) >= lanes) return;
    store(tile + first, load<4>(x + first));
    store(y + first, load<4>(tile + first));
}
