// Kernels with one planted fault each, which the runs on the CPU must find, and beside most of them
// the same kernel without the fault, which must pass. Test: tests/test_cuda_on_cpu.py.
#include "async_copy.cuh"

// The block turns 64 numbers round; without the barrier some are read before they are written.
extern "C" __global__ void reverse(
    const float* x,  // (64)
    float* y) {      // (64)
    __shared__ float tile[64];
    tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = tile[63 - threadIdx.x];
}

extern "C" __global__ void reverse_without_barrier(
    const float* x,  // (64)
    float* y) {      // (64)
    __shared__ float tile[64];
    tile[63 - threadIdx.x] = x[threadIdx.x];
    tile[threadIdx.x] += 1.0f;
    y[threadIdx.x] = tile[threadIdx.x];
}

// Reads are done with the tile, the next round's writes do not wait for them.
extern "C" __global__ void overwrites_what_others_read(
    const float* x,  // (128)
    float* y) {      // (64)
    __shared__ float tile[64];
    float sum = 0.0f;
    for (int round = 0; round < 2; ++round) {
        tile[threadIdx.x] = x[64 * round + threadIdx.x];
        __syncthreads();
        sum += tile[63 - threadIdx.x];
    }
    y[threadIdx.x] = sum;
}

// Every block adds to the same element.
extern "C" __global__ void blocks_share_an_element(
    const float* x,  // (64)
    float* y) {      // (1)
    if (threadIdx.x == 0) y[0] += x[blockIdx.x];
}

// No access races, yet the result depends on the order in which the threads come.
extern "C" __global__ void order_of_atomics(
    int* counter,   // (1)
    int* ticket) {  // (64)
    ticket[threadIdx.x] = atomicAdd(counter, 1);
}

extern "C" __global__ void uninitialised_shared(
    float* y) {  // (64)
    __shared__ float tile[64];
    if (threadIdx.x < 60) tile[threadIdx.x] = 1.0f;
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x];
}

extern "C" __global__ void divergent_barrier(
    float* y) {  // (64)
    if (threadIdx.x < 32) {
        __syncthreads();
        y[threadIdx.x] = 1.0f;
    } else {
        __syncthreads();
        y[threadIdx.x] = 2.0f;
    }
}

extern "C" __global__ void barrier_after_exit(
    float* y,  // (64)
    int count) {
    if (threadIdx.x >= count) return;
    __syncthreads();
    y[threadIdx.x] = 1.0f;
}

extern "C" __global__ void lane_outside_mask(
    float* y) {  // (64)
    float value = threadIdx.x;
    if (threadIdx.x < 16) value = __shfl_down_sync(0xffffffffu, value, 1);
    y[threadIdx.x] = value;
}

// A shuffle of the first half against a barrier of the second: neither ever comes.
extern "C" __global__ void warp_against_block(
    float* y) {  // (32)
    float value = threadIdx.x;
    if (threadIdx.x < 16) value = __shfl_sync(0xffffffffu, value, 0);
    else __syncthreads();
    y[threadIdx.x] = value;
}

extern "C" __global__ void shifted(
    const float* x,  // (64)
    float* y,        // (64)
    int from,
    int to) {
    const int i = threadIdx.x;
    y[i + to] = x[i + from];
}

extern "C" __global__ void shared_overrun(
    float* y,  // (32)
    int offset) {
    __shared__ float tile[32];
    tile[threadIdx.x + offset] = 1.0f;
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x];
}

extern "C" __global__ void vector_copy(
    const float* x,  // (64)
    float* y,        // (64)
    int offset) {
    const float4* source = reinterpret_cast<const float4*>(x + 4 * threadIdx.x + offset);
    reinterpret_cast<float4*>(y)[threadIdx.x] = *source;
}

extern "C" __global__ void null_pointer(
    const float* x,  // or null: (64)
    float* y) {      // (64)
    y[threadIdx.x] = x[threadIdx.x];
}

extern "C" __global__ void divides(
    int* y,  // (64)
    int divisor) {
    y[threadIdx.x] = threadIdx.x / divisor;
}

extern "C" __global__ void overflows(
    int* y,  // (64)
    int factor) {
    y[threadIdx.x] = (int(threadIdx.x) + 1) * factor;
}

// WAIT and BARRIER: what stands between the copies and the reads of other threads' bytes.
extern "C" __global__ void asynchronous(
    const float* x,  // (64)
    float* y,        // (64)
    int valid) {
    __shared__ __align__(16) float tile[64];
    const int four = 4 * threadIdx.x;
    if (four < 64) async_copy_16(&tile[four], &x[four], four < 4 * valid);
    async_copy_commit();
    if (WAIT) async_copy_wait<0>();
    if (BARRIER) __syncthreads();
    y[threadIdx.x] = tile[63 - threadIdx.x];
}

// Two groups in flight: waiting for all but one delivers the first.
extern "C" __global__ void two_groups(
    const float* x,   // (64)
    float* first,     // (32)
    float* second) {  // (32)
    __shared__ float tile[64];
    async_copy_4(&tile[threadIdx.x], &x[threadIdx.x], true);
    async_copy_commit();
    async_copy_4(&tile[threadIdx.x + 32], &x[threadIdx.x + 32], true);
    async_copy_commit();
    async_copy_wait<1>();
    first[threadIdx.x] = tile[threadIdx.x];
    second[threadIdx.x] = tile[threadIdx.x + 32];
}
