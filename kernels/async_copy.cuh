// Copies from global to shared memory that run while the thread computes (cp.async, compute
// capability 8.0 and up; below it plain loads and stores). A copy that is not `valid` writes zeros
// and reads nothing: the padding of an image. Issue, commit a group, wait for it; then the issuing
// thread may read the bytes, the others after a __syncthreads(). Test: tests/test_cuda_on_cpu.py.
#pragma once

#if defined(CUDA_ON_CPU)

// The bytes are NaN from the issue to the wait, so that a missing wait shows.
__device__ __forceinline__ void async_copy_4(float* shared, const float* global, bool valid) {
    cudacpu::copy_async(shared, global, 4, valid);
}
__device__ __forceinline__ void async_copy_16(float* shared, const float* global, bool valid) {
    cudacpu::copy_async(shared, global, 16, valid);
}
__device__ __forceinline__ void async_copy_commit() { cudacpu::copy_commit(); }
template <int GROUPS_LEFT>
__device__ __forceinline__ void async_copy_wait() {
    cudacpu::copy_wait(GROUPS_LEFT);
}

#elif __CUDA_ARCH__ >= 800

__device__ __forceinline__ unsigned shared_address(const void* shared) {
    return static_cast<unsigned>(__cvta_generic_to_shared(shared));
}
__device__ __forceinline__ void async_copy_4(float* shared, const float* global, bool valid) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;"
                 :: "r"(shared_address(shared)), "l"(global), "r"(valid ? 4 : 0) : "memory");
}
__device__ __forceinline__ void async_copy_16(float* shared, const float* global, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;"
                 :: "r"(shared_address(shared)), "l"(global), "r"(valid ? 16 : 0) : "memory");
}
__device__ __forceinline__ void async_copy_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Until all but the GROUPS_LEFT latest groups of this thread have landed.
template <int GROUPS_LEFT>
__device__ __forceinline__ void async_copy_wait() {
    asm volatile("cp.async.wait_group %0;" :: "n"(GROUPS_LEFT) : "memory");
}

#else

__device__ __forceinline__ void async_copy_4(float* shared, const float* global, bool valid) {
    *shared = valid ? *global : 0.0f;
}
__device__ __forceinline__ void async_copy_16(float* shared, const float* global, bool valid) {
    *reinterpret_cast<float4*>(shared) =
        valid ? *reinterpret_cast<const float4*>(global) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
}
__device__ __forceinline__ void async_copy_commit() {}
template <int GROUPS_LEFT>
__device__ __forceinline__ void async_copy_wait() {}

#endif
