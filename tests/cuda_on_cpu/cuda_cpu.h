// The names of CUDA C for g++: stands ahead of a .cu file, whose text is compiled unchanged.
// What each name does is in fibers.cpp; here is only what must be inline or a macro.
#pragma once
#include "core.h"

#include <cfloat>
#include <climits>
#include <cstring>
#include <type_traits>
#include <utility>

// C's own header: the one of C++ is most of what g++ would read before a kernel.
#define _GLIBCXX_INCLUDE_NEXT_C_HEADERS
#include <math.h>
#undef _GLIBCXX_INCLUDE_NEXT_C_HEADERS

#define CUDA_ON_CPU 1
#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __shared__ static __attribute__((section("cuda_shared")))
#define __launch_bounds__(...)
#define __forceinline__ inline __attribute__((always_inline))
#define __noinline__ __attribute__((noinline))
#define __align__(n) __attribute__((aligned(n)))
#define CUDACPU_UNWATCHED __attribute__((no_sanitize("thread")))

// float2, float3, float4 and the like, aligned as CUDA aligns them.
#define CUDACPU_VECTORS(T, NAME) \
    struct alignas(2 * sizeof(T)) NAME##2 { T x, y; }; \
    struct NAME##3 { T x, y, z; }; \
    struct alignas(4 * sizeof(T) > 16 ? 16 : 4 * sizeof(T)) NAME##4 { T x, y, z, w; }; \
    inline NAME##2 make_##NAME##2(T a, T b) { return {a, b}; } \
    inline NAME##3 make_##NAME##3(T a, T b, T c) { return {a, b, c}; } \
    inline NAME##4 make_##NAME##4(T a, T b, T c, T d) { return {a, b, c, d}; }
CUDACPU_VECTORS(float, float)
CUDACPU_VECTORS(double, double)
CUDACPU_VECTORS(int, int)
CUDACPU_VECTORS(unsigned char, uchar)
#undef CUDACPU_VECTORS

#define threadIdx (cudacpu::thread_index())
#define blockIdx (cudacpu::block_index())
#define blockDim (cudacpu::block_size())
#define gridDim (cudacpu::grid_size())
constexpr int warpSize = 32;

#define __syncthreads() cudacpu::barrier(__LINE__)
#define __syncwarp(...) cudacpu::WarpBarrier{__LINE__}(__VA_ARGS__)
#define __shfl_sync(...) cudacpu::shuffle(__LINE__, __VA_ARGS__)
#define __shfl_up_sync(...) cudacpu::shuffle_up(__LINE__, __VA_ARGS__)
#define __shfl_down_sync(...) cudacpu::shuffle_down(__LINE__, __VA_ARGS__)
#define __shfl_xor_sync(...) cudacpu::shuffle_xor(__LINE__, __VA_ARGS__)
#define __ballot_sync(mask, p) static_cast<unsigned>(cudacpu::combine_ballot(mask, !!(p), __LINE__))
#define __any_sync(mask, p) (__ballot_sync(mask, p) != 0)
#define __all_sync(mask, p) (__ballot_sync(mask, !(p)) == 0)
#define CUDACPU_MMA_M16N8K8_TF32(d, a, b, c) cudacpu::mma_m16n8k8_tf32(d, a, b, c, __LINE__)
#define CUDACPU_LOAD_A_FRAGMENT(a, row) cudacpu::load_a_fragment(a, row, __LINE__)

namespace cudacpu {
struct WarpBarrier {
    int line;
    void operator()(unsigned mask = ~0u) const { sync_warp(line, mask); }
};

template <class T>
T exchange_value(unsigned mask, T value, unsigned source, int line) {
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
    uint64_t bits = 0;
    memcpy(&bits, &value, sizeof(T));
    bits = exchange(mask, bits, source, line);
    memcpy(&value, &bits, sizeof(T));
    return value;
}

// Lanes exchange within groups of `width`; a source outside the group leaves the caller's own
// value.
template <class T>
T shuffle(int line, unsigned mask, T value, int source, int width = 32) {
    const unsigned group = lane() & ~(width - 1u);
    return exchange_value(mask, value, group | (unsigned(source) & (width - 1u)), line);
}
template <class T>
T shuffle_up(int line, unsigned mask, T value, unsigned delta, int width = 32) {
    const bool within = (lane() & (width - 1u)) >= delta;
    return exchange_value(mask, value, within ? lane() - delta : lane(), line);
}
template <class T>
T shuffle_down(int line, unsigned mask, T value, unsigned delta, int width = 32) {
    const bool within = (lane() & (width - 1u)) + delta < unsigned(width);
    return exchange_value(mask, value, within ? lane() + delta : lane(), line);
}
template <class T>
T shuffle_xor(int line, unsigned mask, T value, int bits, int width = 32) {
    const unsigned source = lane() ^ unsigned(bits);
    return exchange_value(mask, value, source / width <= lane() / width ? source : lane(), line);
}
}  // namespace cudacpu

// Fibers never run at once, so a plain read-modify-write is atomic.
#define CUDACPU_ATOMIC(NAME, RESULT) \
    template <class T> \
    CUDACPU_UNWATCHED T NAME(T* address, std::common_type_t<T> value) { \
        cudacpu::check_atomic(address, sizeof(T)); \
        const T old = *address; \
        *address = RESULT; \
        return old; \
    }
CUDACPU_ATOMIC(atomicAdd, old + value)
CUDACPU_ATOMIC(atomicMax, value > old ? value : old)
CUDACPU_ATOMIC(atomicMin, value < old ? value : old)
CUDACPU_ATOMIC(atomicOr, old | value)
CUDACPU_ATOMIC(atomicExch, value)
#undef CUDACPU_ATOMIC
template <class T>
CUDACPU_UNWATCHED T atomicCAS(T* address, std::common_type_t<T> expected,
                              std::common_type_t<T> value) {
    cudacpu::check_atomic(address, sizeof(T));
    const T old = *address;
    if (old == expected) *address = value;
    return old;
}

inline void __threadfence() {}
inline void __threadfence_block() {}
template <class T>
T __ldg(const T* address) {
    return *address;
}
template <class A, class B>
constexpr std::common_type_t<A, B> min(A a, B b) {
    return b < a ? b : a;
}
template <class A, class B>
constexpr std::common_type_t<A, B> max(A a, B b) {
    return a < b ? b : a;
}

template <class To, class From>
To cudacpu_bits(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof(To));
    return to;
}
inline int __float_as_int(float x) { return cudacpu_bits<int>(x); }
inline float __int_as_float(int x) { return cudacpu_bits<float>(x); }
inline unsigned __float_as_uint(float x) { return cudacpu_bits<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return cudacpu_bits<float>(x); }

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __powf(float x, float y) { return powf(x, y); }
inline float __fdividef(float a, float b) { return a / b; }
inline void sincospif(float x, float* sine, float* cosine) {
    *sine = float(sin(M_PI * double(x)));
    *cosine = float(cos(M_PI * double(x)));
}
inline float __saturatef(float x) { return x < 0 ? 0 : x > 1 ? 1 : x; }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(x) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return unsigned(1ull * a * b >> 32); }

namespace cudacpu {
// How Python must pass an argument: NumPy's letter of the type; P for a pointer.
template <class T>
constexpr char letter() {
    using U = std::remove_cv_t<T>;
    if (std::is_pointer_v<U>) return 'P';
    if (std::is_same_v<U, float>) return 'f';
    if (std::is_same_v<U, double>) return 'd';
    if (!std::is_integral_v<U>) return '?';
    constexpr const char* letters = std::is_signed_v<U> ? "bhiq" : "BHIQ";
    return letters[sizeof(U) == 1 ? 0 : sizeof(U) == 2 ? 1 : sizeof(U) == 4 ? 2 : 3];
}

template <class... Args>
struct Kernel {
    void (*function)(Args...);
    void** arguments;

    template <size_t... I>
    CUDACPU_UNWATCHED void call(std::index_sequence<I...>) {
        function(*static_cast<std::remove_reference_t<Args>*>(arguments[I])...);
    }
    CUDACPU_UNWATCHED static void body(void* self) {
        static_cast<Kernel*>(self)->call(std::index_sequence_for<Args...>{});
    }
};

template <class... Args>
int launch(void (*function)(Args...), const unsigned* dimensions, size_t shared, unsigned order,
           void** arguments, const Array* arrays, unsigned count) {
    Kernel<Args...> kernel{function, arguments};
    return run(&Kernel<Args...>::body, &kernel, dimensions, shared, order, arrays, count);
}

// Two letters an argument: how it is passed, and the type behind a pointer.
template <class... Args>
const char* signature(void (*)(Args...)) {
    static const char letters[] = {letter<Args>()..., letter<std::remove_pointer_t<Args>>()..., 0};
    return letters;
}
}  // namespace cudacpu

#define CUDACPU_EXPORT(NAME) \
    extern "C" int cudacpu_launch_##NAME(const unsigned* dimensions, size_t shared, \
                                         unsigned order, void** arguments, \
                                         const cudacpu::Array* arrays, unsigned count) { \
        return cudacpu::launch(NAME, dimensions, shared, order, arguments, arrays, count); \
    } \
    extern "C" const char* cudacpu_signature_##NAME() { return cudacpu::signature(NAME); }
