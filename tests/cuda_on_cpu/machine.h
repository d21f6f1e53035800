// What the two halves of the harness share: fibers.cpp runs the block, watch.cpp its memory.
#pragma once
#include "core.h"

#include <vector>

// The static __shared__ variables lie in a section of their own; the linker names its ends.
extern "C" __attribute__((weak, visibility("hidden"))) char __start_cuda_shared[],
    __stop_cuda_shared[];

namespace cudacpu {
constexpr size_t STACK_BYTES = 128 << 10;

enum class State : uint8_t { ready, at_barrier, at_warp, done };

struct Copy {
    void* shared;
    const void* global;
    unsigned bytes, group;
    bool valid;
};

struct Thread {
    void* stack_pointer = nullptr;
    char* stack = nullptr;  // lowest usable address
    uint3 index = {};
    unsigned linear = 0, mask = 0, warp_epoch = 0, copy_groups = 0;
    int line = 0;
    State state = State::done;
    bool orders_memory = false;  // the warp collective waited at is a __syncwarp
    std::vector<Copy> copies;    // issued by cp.async, not yet delivered
};

// The launch as it stands. Epochs count barriers over the whole launch, so they also tell blocks
// apart; 0 means none.
extern Thread* current;
extern uint3 block;
extern unsigned epoch, block_first_epoch, warp_epochs;
extern char* dynamic_memory;
extern size_t dynamic_bytes;
extern bool failed;

void describe(const char* format, ...) __attribute__((format(printf, 1, 2)));

// End the launch with a message, for good: the fiber that is at fault never goes on. code: address
// of the faulty access, for its source line; null where the message says the place itself.
[[noreturn]] void fault(const char* what, const void* code);
[[noreturn]] void abandon();

size_t offset_of(const void* code);  // in this library, of the call that returns there
void watch_arrays(const Array* arrays, unsigned count);
void forget_arrays();
void forget_shared();  // at the start of a block

// Count what warps ask of memory, in place of the watch over it: traffic.cpp.
extern unsigned sampled_blocks;  // of a launch; 0: count nothing, run all
void count_access(const void* address, unsigned bytes, bool write, bool shared, const void* code);
void count_meeting();  // the lanes of all warps have met: what they ask from now on is apart
}  // namespace cudacpu
