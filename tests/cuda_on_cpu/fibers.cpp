// Runs the blocks of a CUDA kernel on the CPU.
//
// Every thread of a block is a fiber with a stack of its own; fibers change at __syncthreads and at
// warp collectives, in an order the caller chooses. Blocks run one after another. x86-64 Linux.
#include "machine.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/mman.h>
#include <utility>

#ifndef __x86_64__
#error "cuda_on_cpu: the change of fibers is written for x86-64"
#endif

extern "C" __attribute__((visibility("hidden"))) void cudacpu_change(void** save, void* load);

// Push the callee-saved registers, swap stacks, pop them again: all that a call must preserve.
asm(R"(.text
.hidden cudacpu_change
.globl cudacpu_change
.type cudacpu_change,@function
cudacpu_change:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp,(%rdi)
    movq %rsi,%rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size cudacpu_change,.-cudacpu_change
)");

namespace cudacpu {
Thread* current;
uint3 block;
unsigned epoch, block_first_epoch, warp_epochs;
char* dynamic_memory;
size_t dynamic_bytes;
bool failed;

namespace {

constexpr size_t PAGE = 4096;

Thread threads[MAX_THREADS];
char** stacks;  // of the threads; one set for all libraries of a process, which run one at a time
dim3 grid_dim, block_dim;
unsigned thread_count;
void* scheduler_stack;
Body body;
void* body_argument;
uint64_t warp_slots[MAX_THREADS / WARP][WARP];
size_t dynamic_capacity;

// ---- fibers

void wait(State state, int line, unsigned mask = 0, bool orders_memory = false) {
    Thread* thread = current;
    thread->state = state;
    thread->line = line;
    thread->mask = mask;
    thread->orders_memory = orders_memory;
    cudacpu_change(&thread->stack_pointer, scheduler_stack);
}

void fiber_main() {
    body(body_argument);
    wait(State::done, 0);
    __builtin_trap();
}

void prepare_fiber(Thread& thread) {
    if (!stacks[thread.linear]) {
        char* pages = static_cast<char*>(mmap(nullptr, STACK_BYTES + PAGE, PROT_READ | PROT_WRITE,
                                              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
        if (pages == MAP_FAILED) {
            perror("cuda_on_cpu: mmap");
            abort();
        }
        mprotect(pages, PAGE, PROT_NONE);  // an overflow of the stack faults
        stacks[thread.linear] = pages + PAGE;
    }
    thread.stack = stacks[thread.linear];
    // Offset by the thread, so that the stacks do not all fall into the same cache sets.
    char* end = thread.stack + STACK_BYTES - thread.linear * 320 % PAGE / 64 * 64;
    void** top = reinterpret_cast<void**>(end);
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(fiber_main);
    for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
    thread.stack_pointer = top;
}

// ---- the block scheduler

bool fail_pair(const char* what, const Thread& one, const Thread& other) {
    describe("%s: block (%u, %u, %u), thread %u at line %d, thread %u at line %d", what, block.x,
             block.y, block.z, one.linear, one.line, other.linear, other.line);
    return false;
}

// Release the lanes that a warp collective waits for, once all have come. False: an error.
bool release_warp(Thread& thread, bool& released) {
    Thread* warp = &threads[thread.linear / WARP * WARP];
    if (!(thread.mask >> thread.linear % WARP & 1))
        return fail_pair("warp collective: the caller is not in its mask", thread, thread);
    for (unsigned lane = 0; lane < WARP; ++lane) {
        if (!(thread.mask >> lane & 1)) continue;
        const Thread& other = warp[lane];
        if (&other >= threads + thread_count || other.state == State::done)
            return fail_pair("warp collective: a lane in the mask has exited", thread, other);
        if (other.state != State::at_warp || other.mask != thread.mask || other.line != thread.line)
            return true;
    }
    const bool orders_memory = thread.orders_memory;
    const unsigned now = orders_memory ? ++warp_epochs : 0, mask = thread.mask;
    for (unsigned lane = 0; lane < WARP; ++lane) {
        if (!(mask >> lane & 1)) continue;
        warp[lane].state = State::ready;
        if (orders_memory) warp[lane].warp_epoch = now;
    }
    released = true;
    return true;
}

// After every ready thread has run: release warps, or the whole block. False: an error.
bool release_waiting(unsigned& running) {
    bool released = false;
    unsigned at_barrier = 0;
    const Thread *first = nullptr, *left = nullptr, *waiting = nullptr;
    for (unsigned i = 0; i < thread_count; ++i) {
        Thread& thread = threads[i];
        if (thread.state == State::at_barrier) {
            if (!first) first = &thread;
            if (thread.line != first->line)
                return fail_pair("divergent __syncthreads", *first, thread);
            ++at_barrier;
        } else if (thread.state == State::at_warp) {
            if (!release_warp(thread, released)) return false;
            waiting = &thread;
        } else if (thread.state == State::done) {
            left = &thread;
        } else {
            released = true;
        }
    }
    if (released || running == 0) return true;
    if (first && left)
        return fail_pair("__syncthreads not reached by a thread that has left the kernel", *first,
                         *left);
    if (at_barrier < running)
        return fail_pair("deadlock: a warp collective is not reached by all lanes of its mask",
                         *waiting, first ? *first : *waiting);
    ++epoch;
    if (sampled_blocks) count_meeting();
    for (unsigned i = 0; i < thread_count; ++i) threads[i].state = State::ready;
    return true;
}

void start_block() {
    block_first_epoch = ++epoch;
    for (unsigned i = 0; i < thread_count; ++i) {
        Thread& thread = threads[i];
        thread.linear = i;
        thread.index = {i % block_dim.x, i / block_dim.x % block_dim.y,
                        i / (block_dim.x * block_dim.y)};
        thread.state = State::ready;
        thread.warp_epoch = thread.copy_groups = 0;
        thread.copies.clear();
        prepare_fiber(thread);
    }
    memset(__start_cuda_shared, 0xFF, __stop_cuda_shared - __start_cuda_shared);
    if (dynamic_bytes) memset(dynamic_memory, 0xFF, dynamic_bytes);
    forget_shared();
}

// `order`: of the threads between two barriers. 0 ascending, 1 descending, else shuffled with that
// seed.
bool run_block(unsigned order) {
    static unsigned sequence[MAX_THREADS];
    uint64_t random = order * 0x9E3779B97F4A7C15ull + 1;
    start_block();
    for (unsigned i = 0; i < thread_count; ++i) sequence[i] = order == 1 ? thread_count - 1 - i : i;
    for (unsigned running = thread_count; running;) {
        for (unsigned i = thread_count - 1; order > 1 && i; --i) {
            random = random * 6364136223846793005ull + 1442695040888963407ull;
            std::swap(sequence[i], sequence[(random >> 33) % (i + 1)]);
        }
        for (unsigned i = 0; i < thread_count; ++i) {
            Thread& thread = threads[sequence[i]];
            if (thread.state != State::ready) continue;
            current = &thread;
            cudacpu_change(&scheduler_stack, thread.stack_pointer);
            current = nullptr;
            if (failed) return false;
            running -= thread.state == State::done;
        }
        if (!release_waiting(running)) return false;
    }
    return true;
}

bool valid_dimensions() {
    const unsigned long long threads_asked = 1ull * block_dim.x * block_dim.y * block_dim.z;
    return threads_asked >= 1 && threads_asked <= MAX_THREADS && block_dim.z <= 64 && grid_dim.x &&
           grid_dim.y && grid_dim.z && grid_dim.x <= 0x7FFFFFFF && grid_dim.y <= 65535 &&
           grid_dim.z <= 65535;
}

bool run_grid(unsigned order) {
    const uint64_t blocks = 1ull * grid_dim.x * grid_dim.y * grid_dim.z;
    const uint64_t run = sampled_blocks && sampled_blocks < blocks ? sampled_blocks : blocks;
    for (uint64_t i = 0; i < run; ++i) {
        const uint64_t b = order == 1 ? blocks - 1 - i : i * blocks / run;
        block = {unsigned(b % grid_dim.x), unsigned(b / grid_dim.x % grid_dim.y),
                 unsigned(b / grid_dim.x / grid_dim.y)};
        if (!run_block(order)) return false;
        if (sampled_blocks) count_meeting();
    }
    return true;
}

}  // namespace

// Leave the faulty fiber for good; the scheduler returns the message.
void abandon() {
    current->state = State::done;
    cudacpu_change(&current->stack_pointer, scheduler_stack);
    __builtin_trap();
}

int run(Body kernel, void* argument, const unsigned* dimensions, size_t shared_bytes,
        unsigned order, const Array* arrays, unsigned count) {
    body = kernel;
    body_argument = argument;
    grid_dim = {dimensions[0], dimensions[1], dimensions[2]};
    block_dim = {dimensions[3], dimensions[4], dimensions[5]};
    failed = false;
    epoch = warp_epochs = 0;
    if (!valid_dimensions()) {
        describe("grid or block dimensions that no GPU accepts");
        return 1;
    }
    thread_count = block_dim.x * block_dim.y * block_dim.z;
    if (shared_bytes > dynamic_capacity) {
        free(dynamic_memory);
        dynamic_capacity = (shared_bytes + 255) / 256 * 256;
        dynamic_memory = static_cast<char*>(aligned_alloc(256, dynamic_capacity));
    }
    dynamic_bytes = shared_bytes;
    watch_arrays(arrays, count);
    const bool finished = run_grid(order);
    forget_arrays();
    return finished ? 0 : 2;
}

// ---- what the kernel calls

uint3 thread_index() { return current->index; }
uint3 block_index() { return block; }
dim3 block_size() { return block_dim; }
dim3 grid_size() { return grid_dim; }
void* dynamic_shared() { return dynamic_memory; }
unsigned lane() { return current->linear % WARP; }

void barrier(int line) { wait(State::at_barrier, line); }
void sync_warp(int line, unsigned mask) { wait(State::at_warp, line, mask, true); }

// Collectives: write the slot, meet, read the slots, meet again. They order no memory, as on a GPU.
uint64_t exchange(unsigned mask, uint64_t bits, unsigned source_lane, int line) {
    uint64_t* slots = warp_slots[current->linear / WARP];
    slots[lane()] = bits;
    wait(State::at_warp, line, mask);
    bits = slots[source_lane % WARP];
    wait(State::at_warp, line, mask);
    return mask >> source_lane % WARP & 1 ? bits
                                          : ~0ull;  // not in the mask: undefined on a GPU, NaN here
}

uint64_t combine_ballot(unsigned mask, bool bit, int line) {
    uint64_t* slots = warp_slots[current->linear / WARP];
    slots[lane()] = bit;
    wait(State::at_warp, line, mask);
    uint64_t votes = 0;
    for (unsigned other = 0; other < WARP; ++other)
        if (mask >> other & 1) votes |= slots[other] << other;
    wait(State::at_warp, line, mask);
    return votes;
}

float to_tf32(float x) {  // cvt.rna: nearest, ties away from zero, 10 bits of mantissa
    uint32_t bits;
    memcpy(&bits, &x, 4);
    bits = (bits + 0x1000u) & ~0x1FFFu;
    memcpy(&x, &bits, 4);
    return x;
}

// c + a[0] b[0] + ... as tensor cores add: exact products and c are aligned to the largest, cut off
// below its 24 bits, and the sum is cut off too. Rounding by truncation was found on all of them
// (Fasi et al. 2021); later ones keep a bit or two more, so that this is the worst of them.
float add_products(float c, const float* a, const float* b, unsigned count) {
    double terms[5] = {c}, largest = fabs(double(c)), sum = 0.0;
    for (unsigned k = 0; k < count; ++k) {
        terms[k + 1] = double(a[k]) * b[k];
        largest = std::max(largest, fabs(terms[k + 1]));
    }
    if (largest == 0.0) return 0.0f;
    for (unsigned k = 0; k <= count; ++k)
        if (!std::isfinite(terms[k])) return c + a[0] * b[0] + a[1] * b[1] + a[2] * b[2] + a[3] * b[3];
    const double unit = ldexp(1.0, ilogb(largest) - 23);
    for (unsigned k = 0; k <= count; ++k) sum += trunc(terms[k] / unit) * unit;
    const float nearest = float(sum);
    return fabs(double(nearest)) > fabs(sum) ? nextafterf(nearest, 0.0f) : nearest;
}

// mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 with the fragment layout of the PTX ISA:
// with g = lane / 4 and t = lane % 4, a holds A[g, t], A[g + 8, t], A[g, t + 4], A[g + 8, t + 4],
// b holds B[t, g], B[t + 4, g], and c and d hold [g, 2t], [g, 2t + 1], [g + 8, 2t], [g + 8, 2t +
// 1].
void mma_m16n8k8_tf32(float* d, const uint32_t* a, const uint32_t* b, const float* c, int line) {
    static float A[MAX_THREADS / WARP][16][8], B[MAX_THREADS / WARP][8][8];  // B by columns
    const unsigned warp = current->linear / WARP, g = lane() / 4, t = lane() % 4;
    const auto value = [](uint32_t bits) {  // the unit reads the upper 19 bits
        bits &= ~0x1FFFu;
        float x;
        memcpy(&x, &bits, 4);
        return x;
    };
    for (unsigned i = 0; i < 4; ++i) A[warp][g + i % 2 * 8][t + i / 2 * 4] = value(a[i]);
    for (unsigned i = 0; i < 2; ++i) B[warp][g][t + i * 4] = value(b[i]);
    wait(State::at_warp, line, ~0u);
    for (unsigned i = 0; i < 4; ++i) {
        const float *row = A[warp][g + i / 2 * 8], *column = B[warp][2 * t + i % 2];
        d[i] = add_products(add_products(c[i], row, column, 4), row + 4, column + 4, 4);
    }
    wait(State::at_warp, line, ~0u);
}

// ldmatrix.sync.aligned.m8n8.x4.b16: lane l gets word l % 4 of row l / 4 of each of four matrices,
// whose rows begin at the addresses of lanes 0-7, 8-15, 16-23 and 24-31.
void load_a_fragment(uint32_t* a, const float* row, int line) {
    const void* code = __builtin_return_address(0);
    if (uintptr_t(row) % 16) fault("misaligned row of a matrix", code);
    const uintptr_t* rows = warp_slots[current->linear / WARP];
    warp_slots[current->linear / WARP][lane()] = uintptr_t(row);
    wait(State::at_warp, line, ~0u);
    for (unsigned matrix = 0; matrix < 4; ++matrix) {
        const char* word = reinterpret_cast<const char*>(rows[matrix * 8 + lane() / 4]) + lane() % 4 * 4;
        touch(word, 4, false, code);
        memcpy(a + matrix, word, 4);
    }
    wait(State::at_warp, line, ~0u);
}

// cp.async: the bytes are NaN from here until the wait that covers them.
void copy_async(void* shared, const void* global, unsigned bytes, bool valid) {
    const void* code = __builtin_return_address(0);
    if ((uintptr_t(shared) | (valid ? uintptr_t(global) : 0)) % bytes)
        fault("misaligned asynchronous copy", code);
    touch(shared, bytes, true, code);
    if (valid) touch(global, bytes, false, code);
    memset(shared, 0xFF, bytes);
    current->copies.push_back({shared, global, bytes, current->copy_groups, valid});
}

void copy_commit() { ++current->copy_groups; }

void copy_wait(unsigned groups_left) {
    std::vector<Copy> pending;
    for (const Copy& copy : current->copies) {
        if (copy.group + groups_left >= current->copy_groups) {
            pending.push_back(copy);
            continue;
        }
        if (!sampled_blocks) touch(copy.shared, copy.bytes, true, __builtin_return_address(0));
        if (copy.valid)
            memcpy(copy.shared, copy.global, copy.bytes);
        else
            memset(copy.shared, 0, copy.bytes);
    }
    current->copies.swap(pending);
}

void check_atomic(const void* address, unsigned bytes) {
    touch(address, bytes, true, __builtin_return_address(0), true);
}

}  // namespace cudacpu

// A table of MAX_THREADS pointers, zero at first; before the first launch.
extern "C" void cudacpu_use_stacks(char** table) { cudacpu::stacks = table; }
