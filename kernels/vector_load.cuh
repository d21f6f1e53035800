// kernels/vector_load.cuh: neighbouring elements that one instruction loads or stores together.
#pragma once

// The alignment makes the compiler move the whole vector at once: 16 bytes for four floats.
template <class T, int lanes>
struct __align__(lanes * sizeof(T)) Vector {
    T at[lanes];
    __device__ T& operator[](int lane) { return at[lane]; }
    __device__ const T& operator[](int lane) const { return at[lane]; }
};

#ifdef CUDA_ON_CPU
#define MOVED_WHOLE CUDACPU_UNWATCHED __noinline__  // the watch is told of one access, here
#define WATCH_WHOLE(address, bytes, write) \
    cudacpu::touch(address, bytes, write, __builtin_return_address(0))
#else
#define MOVED_WHOLE __device__ __forceinline__
#define WATCH_WHOLE(address, bytes, write)
#endif

// A whole vector at an address that is a multiple of its size.
template <int lanes, class T>
MOVED_WHOLE Vector<T, lanes> load(const T* source) {
    WATCH_WHOLE(source, lanes * sizeof(T), false);
    return *reinterpret_cast<const Vector<T, lanes>*>(source);
}
template <class T, int lanes>
MOVED_WHOLE void store(T* target, const Vector<T, lanes>& values) {
    WATCH_WHOLE(target, lanes * sizeof(T), true);
    *reinterpret_cast<Vector<T, lanes>*>(target) = values;
}

// Elementwise kernels over flat arrays of any length at any address: one thread, four elements.
__device__ __forceinline__ unsigned first_of_four() {
    return 4 * (blockIdx.x * blockDim.x + threadIdx.x);
}
template <class T>
__device__ __forceinline__ bool whole_and_aligned(const T* array, unsigned first, int count) {
    return first + 4 <= count && reinterpret_cast<size_t>(array) % (4 * sizeof(T)) == 0;
}

// array[first], ..., array[first + 3]; zeros from `count` on.
template <class T>
__device__ __forceinline__ Vector<T, 4> load_four(const T* array, unsigned first, int count) {
    if (whole_and_aligned(array, first, count)) return load<4>(array + first);
    Vector<T, 4> values;
    for (int lane = 0; lane < 4; ++lane)
        values[lane] = first + lane < count ? array[first + lane] : T(0);
    return values;
}
template <class T>
__device__ __forceinline__ void store_four(T* array, unsigned first, int count,
                                           const Vector<T, 4>& values) {
    if (whole_and_aligned(array, first, count)) return store(array + first, values);
    for (int lane = 0; lane < 4; ++lane)
        if (first + lane < count) array[first + lane] = values[lane];
}
