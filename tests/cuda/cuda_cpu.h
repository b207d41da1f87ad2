// What a plain .cu file sees when g++ compiles it for the CPU: CUDA's words, and the way into the engine.
//
//   g++ -std=c++20 -O2 -ffp-contract=off -x c++ -include cuda_cpu.h levels.cu
//
// A CUDA thread is a fiber, so a word that makes threads wait for each other is a call into engine.cpp, and
// everything else is ordinary C++. Not here: inline PTX, textures, clusters, `<<<>>>`, __activemask, spinning
// on another thread. Functions in headers have to be static, inline or templates: all kernels are linked into
// one library. Templates with shared variables should be static too: the compiler puts no guard zones around
// the variables of others.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <source_location>
#include <type_traits>
#include <utility>

#if defined(CUDA_CPU_CHECKED)
// The compiler reports every memory access of a kernel to checks.cpp; what belongs to the engine is left out.
#define CUDA_CPU_OWN inline __attribute__((noinline, no_sanitize("thread", "kernel-address", "bounds")))
// Blocks run one after the other here, and only variables that are not thread_local get guard zones.
#define __shared__ static
#else
#define CUDA_CPU_OWN inline __attribute__((always_inline))
// An OS thread runs one block at a time, so what belongs to the OS thread belongs to the block.
#define __shared__ static thread_local
#endif

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)
#define __grid_constant__

// ---- vectors

struct uint2 {
    unsigned x, y;
} __align__(8);
struct uint3 {
    unsigned x, y, z;
};
struct uint4 {
    unsigned x, y, z, w;
} __align__(16);
struct int2 {
    int x, y;
} __align__(8);
struct int3 {
    int x, y, z;
};
struct int4 {
    int x, y, z, w;
} __align__(16);
struct float2 {
    float x, y;
} __align__(8);
struct float3 {
    float x, y, z;
};
struct float4 {
    float x, y, z, w;
} __align__(16);
struct double2 {
    double x, y;
} __align__(16);
struct uchar2 {
    unsigned char x, y;
} __align__(2);
struct uchar4 {
    unsigned char x, y, z, w;
} __align__(4);
struct ushort2 {
    unsigned short x, y;
} __align__(4);
struct ushort4 {
    unsigned short x, y, z, w;
} __align__(8);
struct ulonglong2 {
    unsigned long long x, y;
} __align__(16);

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

constexpr uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
constexpr uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
constexpr uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
constexpr int2 make_int2(int x, int y) { return {x, y}; }
constexpr int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
constexpr float2 make_float2(float x, float y) { return {x, y}; }
constexpr float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
constexpr double2 make_double2(double x, double y) { return {x, y}; }
constexpr uchar2 make_uchar2(unsigned char x, unsigned char y) { return {x, y}; }
constexpr uchar4 make_uchar4(unsigned char x, unsigned char y, unsigned char z, unsigned char w) {
    return {x, y, z, w};
}
constexpr ushort2 make_ushort2(unsigned short x, unsigned short y) { return {x, y}; }
constexpr ushort4 make_ushort4(unsigned short x, unsigned short y, unsigned short z, unsigned short w) {
    return {x, y, z, w};
}
constexpr ulonglong2 make_ulonglong2(unsigned long long x, unsigned long long y) { return {x, y}; }

// ---- the engine, as far as kernels call it

namespace cuda_cpu {

// Where a block is: the same for all of its threads.
struct BlockPlace {
    uint3 index;
    dim3 threads, grid;
    char *shared, *dynamic_shared;
    size_t shared_bytes;
};

// Where a CUDA thread is. Its rank counts the threads of the block, x first.
struct ThreadPlace {
    uint3 index;
    unsigned rank;
    const BlockPlace* block;
    // How often it has passed LOCKSTEP.
    mutable unsigned step;
};

// The stacks of all fibers stand in one row: which one a function runs on tells which CUDA thread it runs
// for.
constexpr size_t STACK_BYTES = 128 << 10;
extern uintptr_t stacks_begin;
extern const ThreadPlace** place_by_stack;

CUDA_CPU_OWN const ThreadPlace& place() {
    auto frame = reinterpret_cast<uintptr_t>(__builtin_frame_address(0));
    return *place_by_stack[(frame - stacks_begin) / STACK_BYTES];
}
CUDA_CPU_OWN uint3 thread_index() { return place().index; }
CUDA_CPU_OWN uint3 block_index() { return place().block->index; }
CUDA_CPU_OWN dim3 block_threads() { return place().block->threads; }
CUDA_CPU_OWN dim3 grid_blocks() { return place().block->grid; }
CUDA_CPU_OWN unsigned lane() { return place().rank % 32; }
CUDA_CPU_OWN void next_step() { place().step++; }
CUDA_CPU_OWN char* dynamic_shared() { return place().block->dynamic_shared; }

using Site = std::source_location;

// Waits for all threads of the block that have not ended; returns the sum of their values.
unsigned barrier(unsigned value, Site site);

// Lanes that meet in one operation must name the same.
enum class WarpOperation : unsigned { Sync, Shuffle, Vote, Match, Reduce };

// What the lanes of a warp bring to an operation, each in its place.
struct Meeting {
    unsigned mask;
    WarpOperation operation;
    unsigned arrived, still_reading;
    uint64_t values[32];
    struct Thread* waiting[32];
};

// Waits for all lanes in the mask. Each of them must `leave` the meeting when it has read the values.
Meeting& meet(unsigned mask, WarpOperation operation, uint64_t value, Site site);
CUDA_CPU_OWN void leave(Meeting& meeting) { --meeting.still_reading; }

// Whether conflicts.h is to hear of atomics in shared memory, and how it does.
extern bool conflicts_wanted;
void note_conflict(const volatile void* word);

// Tells checks.cpp of an atomic access, and from where in the kernel it came.
#if defined(CUDA_CPU_CHECKED)
void note_atomic(const volatile void* address, size_t bytes, const void* place);
#define CUDA_CPU_NOTE_ATOMIC(address) \
    cuda_cpu::note_atomic(address, sizeof *(address), __builtin_return_address(0))
#else
#define CUDA_CPU_NOTE_ATOMIC(address)
#endif

template <class T> CUDA_CPU_OWN uint64_t to_bits(T value) {
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
    uint64_t bits = 0;
    std::memcpy(&bits, &value, sizeof value);
    return bits;
}
template <class T> CUDA_CPU_OWN T from_bits(uint64_t bits) {
    T value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// A kernel that the driver can find by its name. They are linked into a list before main begins.
struct Kernel {
    const char* name;
    unsigned argument_count;
    const size_t* argument_bytes;
    void (*run)(void* const* arguments);
    const Kernel* next;
};
extern const Kernel* kernels;

template <auto function> struct Entry;
template <class... A, void (*function)(A...)> struct Entry<function> {
    static constexpr size_t argument_bytes[] = {sizeof(A)..., 0};

    template <size_t... I> CUDA_CPU_OWN static void call(void* const* arguments, std::index_sequence<I...>) {
        function(*static_cast<std::remove_cv_t<A>*>(arguments[I])...);
    }
    CUDA_CPU_OWN static void run(void* const* arguments) { call(arguments, std::index_sequence_for<A...>()); }

    Kernel kernel;
    CUDA_CPU_OWN explicit Entry(const char* name) : kernel{name, sizeof...(A), argument_bytes, run, kernels} {
        kernels = &kernel;
    }
};

}  // namespace cuda_cpu

#define EXPORT_KERNEL(name) static cuda_cpu::Entry<name> name##_entry(#name);
#define LOCKSTEP() cuda_cpu::next_step()
#define CUDA_CPU_DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(cuda_cpu::dynamic_shared())

#define threadIdx (cuda_cpu::thread_index())
#define blockIdx (cuda_cpu::block_index())
#define blockDim (cuda_cpu::block_threads())
#define gridDim (cuda_cpu::grid_blocks())
constexpr int warpSize = 32;

// ---- threads that wait for each other

CUDA_CPU_OWN void __syncthreads(cuda_cpu::Site site = cuda_cpu::Site::current()) {
    cuda_cpu::barrier(0, site);
}
CUDA_CPU_OWN int __syncthreads_count(int predicate, cuda_cpu::Site site = cuda_cpu::Site::current()) {
    return static_cast<int>(cuda_cpu::barrier(predicate != 0, site));
}
CUDA_CPU_OWN int __syncthreads_or(int predicate, cuda_cpu::Site site = cuda_cpu::Site::current()) {
    return cuda_cpu::barrier(predicate != 0, site) != 0;
}
CUDA_CPU_OWN int __syncthreads_and(int predicate, cuda_cpu::Site site = cuda_cpu::Site::current()) {
    return cuda_cpu::barrier(predicate == 0, site) == 0;
}

CUDA_CPU_OWN void __syncwarp(unsigned mask = ~0u, cuda_cpu::Site site = cuda_cpu::Site::current()) {
    cuda_cpu::leave(cuda_cpu::meet(mask, cuda_cpu::WarpOperation::Sync, 0, site));
}

// The full fences order what one thread does; threads of a block are fibers, and x86 and ARM order the rest.
CUDA_CPU_OWN void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
CUDA_CPU_OWN void __threadfence_block() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

namespace cuda_cpu {

// The value of the lane that `source` names, or the own one if it names a lane outside of 0..32.
template <class T, class Source> CUDA_CPU_OWN T shuffle(unsigned mask, T value, Site site, Source source) {
    Meeting& meeting = meet(mask, WarpOperation::Shuffle, to_bits(value), site);
    unsigned from = source(lane());
    T result = from < 32 ? from_bits<T>(meeting.values[from]) : value;
    leave(meeting);
    return result;
}

// The lanes in the mask whose value passes.
template <class Test>
CUDA_CPU_OWN unsigned select(unsigned mask, WarpOperation operation, uint64_t value, Site site, Test test) {
    Meeting& meeting = meet(mask, operation, value, site);
    unsigned selected = 0;
    for (unsigned left = mask; left; left &= left - 1) {
        unsigned other = static_cast<unsigned>(__builtin_ctz(left));
        selected |= static_cast<unsigned>(test(meeting.values[other])) << other;
    }
    leave(meeting);
    return selected;
}

template <class T, class Add> CUDA_CPU_OWN T reduce(unsigned mask, T value, Site site, Add add) {
    Meeting& meeting = meet(mask, WarpOperation::Reduce, to_bits(value), site);
    unsigned left = mask;
    T result = from_bits<T>(meeting.values[__builtin_ctz(left)]);
    for (left &= left - 1; left; left &= left - 1) {
        result = add(result, from_bits<T>(meeting.values[__builtin_ctz(left)]));
    }
    leave(meeting);
    return result;
}

}  // namespace cuda_cpu

template <class T>
CUDA_CPU_OWN T __shfl_sync(unsigned mask, T value, int source, int width = 32,
                           cuda_cpu::Site site = cuda_cpu::Site::current()) {
    return cuda_cpu::shuffle(mask, value, site,
                             [=](unsigned lane) { return (lane & ~(width - 1u)) | (source & (width - 1u)); });
}
template <class T>
CUDA_CPU_OWN T __shfl_xor_sync(unsigned mask, T value, int flip, int width = 32,
                               cuda_cpu::Site site = cuda_cpu::Site::current()) {
    return cuda_cpu::shuffle(mask, value, site, [=](unsigned lane) {
        unsigned from = lane ^ static_cast<unsigned>(flip);
        return from > (lane | (width - 1u)) ? ~0u : from;
    });
}
template <class T>
CUDA_CPU_OWN T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32,
                                cuda_cpu::Site site = cuda_cpu::Site::current()) {
    return cuda_cpu::shuffle(mask, value, site, [=](unsigned lane) {
        return (lane & (width - 1u)) + by >= static_cast<unsigned>(width) ? ~0u : lane + by;
    });
}
template <class T>
CUDA_CPU_OWN T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32,
                              cuda_cpu::Site site = cuda_cpu::Site::current()) {
    return cuda_cpu::shuffle(mask, value, site,
                             [=](unsigned lane) { return (lane & (width - 1u)) < by ? ~0u : lane - by; });
}
CUDA_CPU_OWN unsigned __ballot_sync(unsigned mask, int predicate,
                                    cuda_cpu::Site site = cuda_cpu::Site::current()) {
    auto yes = [](uint64_t value) { return value != 0; };
    return cuda_cpu::select(mask, cuda_cpu::WarpOperation::Vote, predicate != 0, site, yes);
}
CUDA_CPU_OWN int __any_sync(unsigned mask, int predicate, cuda_cpu::Site site = cuda_cpu::Site::current()) {
    return __ballot_sync(mask, predicate, site) != 0;
}
CUDA_CPU_OWN int __all_sync(unsigned mask, int predicate, cuda_cpu::Site site = cuda_cpu::Site::current()) {
    return __ballot_sync(mask, predicate, site) == mask;
}
template <class T>
CUDA_CPU_OWN unsigned __match_any_sync(unsigned mask, T value,
                                       cuda_cpu::Site site = cuda_cpu::Site::current()) {
    auto equal = [bits = cuda_cpu::to_bits(value)](uint64_t other) { return other == bits; };
    return cuda_cpu::select(mask, cuda_cpu::WarpOperation::Match, cuda_cpu::to_bits(value), site, equal);
}
CUDA_CPU_OWN unsigned __reduce_add_sync(unsigned mask, unsigned value,
                                        cuda_cpu::Site site = cuda_cpu::Site::current()) {
    return cuda_cpu::reduce(mask, value, site, [](unsigned a, unsigned b) { return a + b; });
}
CUDA_CPU_OWN unsigned __reduce_or_sync(unsigned mask, unsigned value,
                                       cuda_cpu::Site site = cuda_cpu::Site::current()) {
    return cuda_cpu::reduce(mask, value, site, [](unsigned a, unsigned b) { return a | b; });
}
CUDA_CPU_OWN unsigned __reduce_max_sync(unsigned mask, unsigned value,
                                        cuda_cpu::Site site = cuda_cpu::Site::current()) {
    return cuda_cpu::reduce(mask, value, site, [](unsigned a, unsigned b) { return a > b ? a : b; });
}
CUDA_CPU_OWN unsigned __reduce_min_sync(unsigned mask, unsigned value,
                                        cuda_cpu::Site site = cuda_cpu::Site::current()) {
    return cuda_cpu::reduce(mask, value, site, [](unsigned a, unsigned b) { return a < b ? a : b; });
}

// ---- atomics: relaxed, as CUDA's are

namespace cuda_cpu {

// Whether the address is in shared memory: its block runs on one OS thread, which makes everything there
// atomic.
CUDA_CPU_OWN bool is_shared(const volatile void* address) {
    const BlockPlace& block = *place().block;
    return static_cast<size_t>(static_cast<const volatile char*>(address) - block.shared) <
           block.shared_bytes;
}

// In global memory other blocks change things at the same time: the new value is stored where the old one
// still stands.
template <class T, class Change> CUDA_CPU_OWN T change(T* address, Change change) {
    if (is_shared(address)) {
        if (conflicts_wanted) note_conflict(address);
        T old = *address;
        *address = change(old);
        return old;
    }
    T old, wanted;
    __atomic_load(address, &old, __ATOMIC_RELAXED);
    do {
        wanted = change(old);
    } while (!__atomic_compare_exchange(address, &old, &wanted, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
    return old;
}

}  // namespace cuda_cpu

#define CUDA_CPU_ATOMIC(name, new_value) \
    template <class T> CUDA_CPU_OWN T name(T* address, std::type_identity_t<T> value) { \
        CUDA_CPU_NOTE_ATOMIC(address); \
        return cuda_cpu::change(address, [=](T old) -> T { return new_value; }); \
    }
CUDA_CPU_ATOMIC(atomicAdd, old + value)
CUDA_CPU_ATOMIC(atomicSub, old - value)
CUDA_CPU_ATOMIC(atomicOr, old | value)
CUDA_CPU_ATOMIC(atomicAnd, old& value)
CUDA_CPU_ATOMIC(atomicXor, old ^ value)
CUDA_CPU_ATOMIC(atomicMax, old < value ? value : old)
CUDA_CPU_ATOMIC(atomicMin, value < old ? value : old)
CUDA_CPU_ATOMIC(atomicExch, (static_cast<void>(old), value))

template <class T>
CUDA_CPU_OWN T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
    CUDA_CPU_NOTE_ATOMIC(address);
    return cuda_cpu::change(address, [=](T old) { return old == expected ? value : old; });
}

// ---- loads and stores: the hints for caches mean nothing here

template <class T> inline T __ldg(const T* address) { return *address; }
template <class T> inline T __ldca(const T* address) { return *address; }
template <class T> inline T __ldcg(const T* address) { return *address; }
template <class T> inline T __ldcs(const T* address) { return *address; }
template <class T> inline T __ldlu(const T* address) { return *address; }
template <class T> inline void __stwb(T* address, std::type_identity_t<T> value) { *address = value; }
template <class T> inline void __stcg(T* address, std::type_identity_t<T> value) { *address = value; }
template <class T> inline void __stcs(T* address, std::type_identity_t<T> value) { *address = value; }

// ---- bits

CUDA_CPU_OWN unsigned __float_as_uint(float value) {
    return cuda_cpu::from_bits<unsigned>(cuda_cpu::to_bits(value));
}
CUDA_CPU_OWN int __float_as_int(float value) { return cuda_cpu::from_bits<int>(cuda_cpu::to_bits(value)); }
CUDA_CPU_OWN float __uint_as_float(unsigned bits) { return cuda_cpu::from_bits<float>(bits); }
CUDA_CPU_OWN float __int_as_float(int bits) { return cuda_cpu::from_bits<float>(cuda_cpu::to_bits(bits)); }
CUDA_CPU_OWN long long __double_as_longlong(double value) {
    return static_cast<long long>(cuda_cpu::to_bits(value));
}
CUDA_CPU_OWN double __longlong_as_double(long long bits) {
    return cuda_cpu::from_bits<double>(cuda_cpu::to_bits(bits));
}
CUDA_CPU_OWN int __popc(unsigned bits) { return __builtin_popcount(bits); }
CUDA_CPU_OWN int __popcll(unsigned long long bits) { return __builtin_popcountll(bits); }
CUDA_CPU_OWN int __clz(int bits) { return bits ? __builtin_clz(static_cast<unsigned>(bits)) : 32; }
CUDA_CPU_OWN int __clzll(long long bits) {
    return bits ? __builtin_clzll(static_cast<unsigned long long>(bits)) : 64;
}
CUDA_CPU_OWN int __ffs(int bits) { return __builtin_ffs(bits); }
CUDA_CPU_OWN int __ffsll(long long bits) { return __builtin_ffsll(bits); }
CUDA_CPU_OWN unsigned __brev(unsigned bits) {
    unsigned reversed = 0;
    for (int i = 0; i < 32; i++) reversed |= (bits >> i & 1u) << (31 - i);
    return reversed;
}
CUDA_CPU_OWN unsigned __umulhi(unsigned a, unsigned b) {
    return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32);
}
CUDA_CPU_OWN int __mulhi(int a, int b) { return static_cast<int>(static_cast<int64_t>(a) * b >> 32); }
CUDA_CPU_OWN unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return static_cast<unsigned long long>(static_cast<unsigned __int128>(a) * b >> 64);
}
CUDA_CPU_OWN unsigned __byte_perm(unsigned low, unsigned high, unsigned selectors) {
    uint64_t bytes = static_cast<uint64_t>(high) << 32 | low;
    unsigned result = 0;
    for (int i = 0; i < 4; i++) {
        unsigned selector = selectors >> 4 * i & 15u;
        unsigned byte = static_cast<unsigned>(bytes >> 8 * (selector & 7u)) & 255u;
        // The fourth bit of a selector asks for eight copies of the byte's sign.
        if (selector & 8u) byte = byte & 128u ? 255u : 0u;
        result |= byte << 8 * i;
    }
    return result;
}
CUDA_CPU_OWN unsigned __funnelshift_l(unsigned low, unsigned high, unsigned by) {
    return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) << (by & 31u) >> 32);
}
CUDA_CPU_OWN unsigned __funnelshift_r(unsigned low, unsigned high, unsigned by) {
    return static_cast<unsigned>((static_cast<uint64_t>(high) << 32 | low) >> (by & 31u));
}

// ---- arithmetic: compiled without contraction, so that each operation rounds once

// NVIDIA's NaN has no sign; that of x86 has one.
CUDA_CPU_OWN float with_own_nan(float result) {
    const uint32_t bits = 0x7fffffffu;
    float nan;
    std::memcpy(&nan, &bits, sizeof nan);
    return result != result ? nan : result;
}

CUDA_CPU_OWN float __fadd_rn(float a, float b) { return with_own_nan(a + b); }
CUDA_CPU_OWN float __fsub_rn(float a, float b) { return with_own_nan(a - b); }
CUDA_CPU_OWN float __fmul_rn(float a, float b) { return with_own_nan(a * b); }
CUDA_CPU_OWN float __fdiv_rn(float a, float b) { return a / b; }
CUDA_CPU_OWN float __fsqrt_rn(float a) { return std::sqrt(a); }
CUDA_CPU_OWN float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
CUDA_CPU_OWN double __dadd_rn(double a, double b) { return a + b; }
CUDA_CPU_OWN double __dsub_rn(double a, double b) { return a - b; }
CUDA_CPU_OWN double __dmul_rn(double a, double b) { return a * b; }
CUDA_CPU_OWN float __uint2float_rn(unsigned value) { return static_cast<float>(value); }
CUDA_CPU_OWN float __int2float_rn(int value) { return static_cast<float>(value); }
CUDA_CPU_OWN double __uint2double_rn(unsigned value) { return value; }

CUDA_CPU_OWN int min(int a, int b) { return b < a ? b : a; }
CUDA_CPU_OWN int max(int a, int b) { return a < b ? b : a; }
CUDA_CPU_OWN unsigned min(unsigned a, unsigned b) { return b < a ? b : a; }
CUDA_CPU_OWN unsigned max(unsigned a, unsigned b) { return a < b ? b : a; }
CUDA_CPU_OWN unsigned min(unsigned a, int b) { return min(a, static_cast<unsigned>(b)); }
CUDA_CPU_OWN unsigned max(unsigned a, int b) { return max(a, static_cast<unsigned>(b)); }
CUDA_CPU_OWN unsigned min(int a, unsigned b) { return min(static_cast<unsigned>(a), b); }
CUDA_CPU_OWN unsigned max(int a, unsigned b) { return max(static_cast<unsigned>(a), b); }
CUDA_CPU_OWN unsigned long long min(unsigned long long a, unsigned long long b) { return b < a ? b : a; }
CUDA_CPU_OWN unsigned long long max(unsigned long long a, unsigned long long b) { return a < b ? b : a; }
CUDA_CPU_OWN float min(float a, float b) { return std::fmin(a, b); }
CUDA_CPU_OWN float max(float a, float b) { return std::fmax(a, b); }
