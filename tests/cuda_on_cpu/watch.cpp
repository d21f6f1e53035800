// Watches the memory of a running block.
//
// The kernel's object code is compiled with GCC's thread-sanitizer instrumentation, which calls
// __tsan_read4(p) and the like before each access; the hooks below are ours, and hold every access
// against the launch's arrays, the block's shared memory and what other threads did since the last
// barrier. The undefined-behaviour handlers are ours too, so that a fault ends the launch with a
// message and not the process.
#include "machine.h"

#include <cstdarg>
#include <cstdio>
#include <link.h>

extern "C" __attribute__((visibility("hidden"))) const ElfW(Ehdr) __ehdr_start;
extern "C" __attribute__((visibility("hidden"))) char _end[];

namespace cudacpu {
namespace {

// One access that a later one must be ordered after.
struct Access {
    unsigned epoch, warp_epoch, thread;
};
struct Cell {
    Access write, reads[2];
};

struct Shadow {
    Array array;
    std::vector<Cell> cells;
};

std::vector<Shadow> shadows;                    // the launch's arrays
std::vector<Cell> static_cells, dynamic_cells;  // a cell for every 4 bytes of shared memory
char message[1024];
const void* fault_address;

void where(char* text, size_t size) {
    snprintf(text, size, "block (%u, %u, %u), thread (%u, %u, %u)", block.x, block.y, block.z,
             current->index.x, current->index.y, current->index.z);
}

}  // namespace

void describe(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(message, sizeof message, format, arguments);
    va_end(arguments);
    failed = true;
}

void fault(const char* what, const void* code) {
    char place[128];
    where(place, sizeof place);
    describe("%s: %s", what, place);
    fault_address = code;
    abandon();
}

namespace {

bool ordered(const Access& before) {
    if (before.epoch == 0) return true;
    if (before.epoch < block_first_epoch) return false;  // another block of this launch
    if (before.thread == current->linear || before.epoch < epoch) return true;
    return before.thread / WARP == current->linear / WARP &&
           before.warp_epoch < current->warp_epoch;
}

[[noreturn]] void race(const char* name, const Access& before, bool was_write, bool write,
                       const void* code) {
    char text[512];
    const bool blocks = before.epoch < block_first_epoch;
    snprintf(text, sizeof text,
             "race on %s: %s by thread %u%s and %s without a barrier between them", name,
             was_write ? "a write" : "a read", before.thread, blocks ? " of another block" : "",
             write ? "a write" : "a read");
    fault(text, code);
}

void record(Cell& cell, const char* name, bool write, const void* code) {
    if (!ordered(cell.write)) race(name, cell.write, true, write, code);
    const Access now = {epoch, current->warp_epoch, current->linear};
    if (write) {
        for (const Access& read : cell.reads)
            if (!ordered(read)) race(name, read, false, true, code);
        cell.write = now;
        return;
    }
    // Two readers are kept, of different threads: a writer differs from one of them.
    const Access& last = cell.reads[0];
    if (last.epoch && (last.thread != now.thread || last.epoch < block_first_epoch))
        cell.reads[1] = last;
    cell.reads[0] = now;
}

// Accesses below 4 bytes are not held against each other: neighbours share a cell.
void touch_shared(std::vector<Cell>& cells, size_t offset, unsigned bytes, bool write,
                  const void* code) {
    if (sampled_blocks) return count_access((void*)offset, bytes, write, true, code);
    for (size_t cell = offset / 4; cell <= (offset + bytes - 1) / 4; ++cell) {
        if (!write && cells[cell].write.epoch == 0)
            fault("shared memory read before it was written", code);
        if (bytes >= 4)
            record(cells[cell], "shared memory", write, code);
        else if (write)
            cells[cell].write = {epoch, current->warp_epoch, current->linear};
    }
}

[[noreturn]] void outside(const char* address, unsigned bytes, bool write, const void* code) {
    const char* action = write ? "write" : "read";
    const Array* nearest = nullptr;
    size_t best = ~size_t(0);
    for (const Shadow& shadow : shadows) {
        const Array& array = shadow.array;
        const size_t gap =
            address < array.base ? array.base - address : address - array.base - array.bytes;
        if (gap < best) best = gap, nearest = &array;
    }
    char text[512];
    if (!address)
        snprintf(text, sizeof text, "%s through a null pointer", action);
    else if (nearest && best < (1u << 20))
        snprintf(text, sizeof text,
                 "%s of %u bytes outside the arrays: %s[%lld], which has %zu elements", action,
                 bytes, nearest->name,
                 (long long)(address - nearest->base) / (long long)nearest->element,
                 nearest->bytes / nearest->element);
    else
        snprintf(text, sizeof text, "%s of %u bytes outside every array of the launch", action,
                 bytes);
    fault(text, code);
}

bool inside(const char* address, unsigned bytes, const char* base, size_t size) {
    return address >= base && address + bytes <= base + size;
}

}  // namespace

void touch(const void* pointer, unsigned bytes, bool write, const void* code, bool atomic) {
    if (!current) return;
    const char* address = static_cast<const char*>(pointer);
    if (inside(address, bytes, current->stack, STACK_BYTES)) return;
    for (Shadow& shadow : shadows) {
        const Array& array = shadow.array;
        if (!inside(address, bytes, array.base, array.bytes)) continue;
        if (atomic) return;
        if (sampled_blocks) return count_access(address, bytes, write, false, code);
        const size_t first = (address - array.base) / array.element;
        const size_t last = (address - array.base + bytes - 1) / array.element;
        for (size_t cell = first; cell <= last; ++cell)
            record(shadow.cells[cell], array.name, write, code);
        return;
    }
    const size_t static_bytes = __stop_cuda_shared - __start_cuda_shared;
    if (inside(address, bytes, __start_cuda_shared, static_bytes)) {
        if (!atomic) touch_shared(static_cells, address - __start_cuda_shared, bytes, write, code);
    } else if (inside(address, bytes, dynamic_memory, dynamic_bytes)) {
        if (!atomic) touch_shared(dynamic_cells, address - dynamic_memory, bytes, write, code);
    } else {
        const char* image =
            reinterpret_cast<const char*>(&__ehdr_start);  // __constant__ data, literals
        if (!inside(address, bytes, image, _end - image)) outside(address, bytes, write, code);
    }
}

size_t offset_of(const void* code) {
    return static_cast<const char*>(code) - reinterpret_cast<const char*>(&__ehdr_start) - 1;
}

void watch_arrays(const Array* arrays, unsigned count) {
    fault_address = nullptr;
    shadows.clear();
    for (unsigned i = 0; i < count; ++i)
        shadows.push_back(
            {arrays[i],
             std::vector<Cell>(sampled_blocks ? 0 : arrays[i].bytes / arrays[i].element)});
}

void forget_arrays() { shadows.clear(); }

void forget_shared() {
    static_cells.assign((__stop_cuda_shared - __start_cuda_shared + 3) / 4, Cell{});
    dynamic_cells.assign((dynamic_bytes + 3) / 4, Cell{});
}
}  // namespace cudacpu

// ---- the hooks that the compiler calls

#define ACCESS(NAME, BYTES, WRITE) \
    void __tsan_##NAME(void* p) { cudacpu::touch(p, BYTES, WRITE, __builtin_return_address(0)); }
#define ACCESSES(BYTES) \
    ACCESS(read##BYTES, BYTES, false) \
    ACCESS(write##BYTES, BYTES, true) \
    ACCESS(unaligned_read##BYTES, BYTES, false) ACCESS(unaligned_write##BYTES, BYTES, true)

// What a handler of the undefined-behaviour sanitizer is told first, whatever the check.
struct SourceLocation {
    const char* file;
    unsigned line, column;
};

#define UNDEFINED(NAME, WHAT) \
    void __ubsan_handle_##NAME##_abort(SourceLocation* location) { \
        cudacpu::undefined(WHAT, location); \
    }

namespace cudacpu {
[[noreturn]] static void undefined(const char* what, const SourceLocation* location) {
    char text[512];
    snprintf(text, sizeof text, "%s at %s:%u", what, location->file, location->line);
    fault(text, nullptr);
}
}  // namespace cudacpu

extern "C" {
ACCESSES(1)
ACCESSES(2) ACCESSES(4) ACCESSES(8) ACCESSES(16) void __tsan_read_range(void* p, size_t n) {
    cudacpu::touch(p, unsigned(n), false, __builtin_return_address(0));
}
void __tsan_write_range(void* p, size_t n) {
    cudacpu::touch(p, unsigned(n), true, __builtin_return_address(0));
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}

UNDEFINED(out_of_bounds, "index outside a local or shared array")
UNDEFINED(type_mismatch_v1, "misaligned access")
UNDEFINED(divrem_overflow, "integer division by zero")
UNDEFINED(shift_out_of_bounds, "shift beyond the width of the type")
UNDEFINED(add_overflow, "integer overflow")
UNDEFINED(sub_overflow, "integer overflow")
UNDEFINED(mul_overflow, "integer overflow")
UNDEFINED(negate_overflow, "integer overflow")

const char* cudacpu_message() { return cudacpu::message; }
// Offset of the faulty access in this library, for addr2line; 0 where the message says the place
// itself.
size_t cudacpu_fault_offset() {
    return cudacpu::fault_address ? cudacpu::offset_of(cudacpu::fault_address) : 0;
}
}
