// What the instrumented kernel code calls: see fibers.cpp. One CUDA thread is one fiber of this
// process.
#pragma once
#include <cstddef>
#include <cstdint>

struct uint3 {
    unsigned x, y, z;
};
struct dim3 {
    unsigned x, y, z;
};

namespace cudacpu {
constexpr unsigned MAX_THREADS = 1024, WARP = 32;

// One array argument of a launch; its shadow records who touched which element.
struct Array {
    const char* name;
    char* base;
    size_t bytes;
    unsigned element;  // bytes
};

using Body = void (*)(void*);
int run(Body body, void* argument, const unsigned* grid_and_block, size_t shared_bytes,
        unsigned order, const Array* arrays, unsigned count);

// Constant within one fiber, which is all the compiler may assume.
__attribute__((const)) uint3 thread_index();
__attribute__((const)) uint3 block_index();
__attribute__((const)) dim3 block_size();
__attribute__((const)) dim3 grid_size();
__attribute__((const)) void* dynamic_shared();

void barrier(int line);
void sync_warp(int line, unsigned mask);
uint64_t exchange(unsigned mask, uint64_t bits, unsigned source_lane, int line);
uint64_t combine_ballot(unsigned mask, bool bit, int line);
unsigned lane();

// The CPU side of tensor_core.cuh and async_copy.cuh.
float to_tf32(float x);
void mma_m16n8k8_tf32(float* d, const uint32_t* a, const uint32_t* b, const float* c, int line);
void load_a_fragment(uint32_t* a, const float* row, int line);
void copy_async(void* shared, const void* global, unsigned bytes, bool valid);
void copy_commit();
void copy_wait(unsigned groups_left);

// Bounds only: atomics may meet one another.
void check_atomic(const void* address, unsigned bytes);

// Hold an access of the current fiber against the launch's memory; code: where it happens.
void touch(const void* address, unsigned bytes, bool write, const void* code, bool atomic = false);
}  // namespace cudacpu
