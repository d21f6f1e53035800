// kernels/gather.cu: a mini-batch out of the data set that lies on the device.
//
// images (N, IMAGE_SIZE), mean (IMAGE_SIZE) -> x (M, IMAGE_SIZE) = (image - mean)*scale, and labels
// (N) -> targets (M), where there are any.
//
// Row m of the batch is example indices[(step*M + m) mod count]: indices is a ring of shuffled
// epochs, permutations of 0 to N - 1, unchecked, and step lies in device memory, so that a
// captured graph goes on to the next batch. Of RANKS processes that share a mini-batch this one,
// RANK, takes every RANKS-th example.
//
// One block in x an image, one thread four neighbouring values (one where IMAGE_SIZE is not a
// multiple of four).
// Launcher: kfcnet/ops/cuda/updates.py. Contract: kfcnet/ops/primitives.py. Tests:
// tests/test_kernels_elementwise.py.
// Bytes a value: 5, the mean comes from the cache; limited by memory.
#include "vector_load.cuh"

#ifndef RANKS
#define RANKS 1
#define RANK 0
#endif

constexpr int LANES = IMAGE_SIZE % 4 == 0 ? 4 : 1;

extern "C" __global__ void gather(
    const unsigned char* __restrict__ images,  // aligned (N, IMAGE_SIZE)
    const int* __restrict__ labels,            // or null: (N)
    const float* __restrict__ mean,            // aligned (IMAGE_SIZE)
    const long long* __restrict__ indices,     // (count)
    const long long* __restrict__ step,        // (1)
    float* __restrict__ x,                     // aligned (M, IMAGE_SIZE)
    int* __restrict__ targets,                 // or null: (M)
    int N,
    int M,
    int count,
    float scale) {
    __shared__ long long example;  // found by one thread: a division of 64-bit numbers is long
    const int m = blockIdx.x;
    const int first = LANES * (blockIdx.y * blockDim.x + threadIdx.x);
    if (threadIdx.x == 0) {
        example = indices[((*step * M + m) * RANKS + RANK) % count];
        if (labels && blockIdx.y == 0) targets[m] = labels[example];
    }
    __syncthreads();
    if (first >= IMAGE_SIZE) return;
    const Vector<unsigned char, LANES> pixels =
        load<LANES>(images + example * IMAGE_SIZE + first);
    Vector<float, LANES> value = load<LANES>(mean + first);
    for (int lane = 0; lane < LANES; ++lane) value[lane] = (pixels[lane] - value[lane]) * scale;
    store(x + m * IMAGE_SIZE + first, value);
}
