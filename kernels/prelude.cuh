// What all kernels share: the walk over tiles, element types at the door, keys, random masks, the order of sums.
//
// A block of THREADS threads works on one tile of TILE elements at a time; thread t has the elements 8t … 8t+7, which
// are one group of the sums' order and one call of the random generator. Inputs start at multiples of 16 bytes and
// are padded to whole tiles, so every load is a whole 16-byte vector: lanes past the end are read and left out of
// whatever is counted. Arithmetic is f32 by add, sub and mul below: in the written order, each rounded, never fused.
//
// Every entry has the same parameters: `memory` is the device memory that inputs lie in, `table` the launch (a Header,
// then blocks, spans and jobs; offsets in words of 4 bytes), `results` what the launch leaves behind.
#pragma once
#include "params.cuh"

// Tests that run kernels on the CPU put their own registration here.
#ifndef EXPORT_KERNEL
#define EXPORT_KERNEL(name)
#endif

// Four blocks a multiprocessor leave 128 registers a thread. Left to itself the assembler prefers more blocks, and spills.
#define ENTRY(name, ...)                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS, 4)                                              \
        name(const uint4* __restrict__ memory, const unsigned* __restrict__ table,                        \
             unsigned char* __restrict__ results) {                                                       \
        __VA_ARGS__(Work(memory, table, results));                                                        \
    }                                                                                                     \
    EXPORT_KERNEL(name)

// A kernel template for inputs that are all of one type, and for inputs of several.
#define ENTRIES(name)                                                                                     \
    ENTRY(name##_float32, name<FLOAT_F32>)                                                                \
    ENTRY(name##_float16, name<FLOAT_F16>)                                                                \
    ENTRY(name##_bfloat16, name<FLOAT_BF16>)                                                              \
    ENTRY(name##_mixed, name<FLOAT_MIXED>)

#define DEVICE __device__ __forceinline__

// What is rare stays out of the way of the others, in a function of its own.
#ifdef __CUDACC__
#define DEVICE_APART __device__ __noinline__
#else
#define DEVICE_APART [[maybe_unused]] static __attribute__((noinline))
#endif

DEVICE float add(float a, float b) { return __fadd_rn(a, b); }
DEVICE float sub(float a, float b) { return __fsub_rn(a, b); }
DEVICE float mul(float a, float b) { return __fmul_rn(a, b); }

DEVICE unsigned magnitude_bits(float x) { return __float_as_uint(x) & 0x7fffffffu; }
DEVICE float absolute(float x) { return fabsf(x); }

// |delta| as an integer key: the order of keys is the order of magnitudes. All NaN share the largest key.
DEVICE int key_of(float delta) { return min((int)magnitude_bits(delta), (int)KEY_MAX); }

// What a block works on: some tiles of one span.
struct Work {
    const uint4* memory;
    const unsigned* table;
    const Header* header;
    const Span* span;
    // The inputs' places in memory, in vectors of 16 bytes.
    const unsigned* inputs;
    const unsigned* job;
    unsigned first;
    unsigned end;
    unsigned record;
    uint4* results;
    uint4* out;
    unsigned* tally;

    DEVICE Work(const uint4* memory, const unsigned* table, unsigned char* results)
        : memory(memory), table(table), header(reinterpret_cast<const Header*>(table)) {
        const Block* block = reinterpret_cast<const Block*>(table + header->blocks) + blockIdx.x;
        span = reinterpret_cast<const Span*>(table + block->span);
        inputs = reinterpret_cast<const unsigned*>(span + 1);
        job = table + span->job;
        first = block->first;
        end = block->first + block->tiles;
        record = block->record;
        this->results = reinterpret_cast<uint4*>(results);
        out = this->results + span->results;
        tally = reinterpret_cast<unsigned*>(results) + span->tally;
    }

    DEVICE unsigned float_of(unsigned input) const { return table[header->floats + input]; }

    // How many of this thread's eight elements of the span's tile exist.
    DEVICE int lanes(unsigned tile) const {
        return min(max((int)(span->elements - tile * TILE) - (int)threadIdx.x * 8, 0), 8);
    }

    // How many elements of the span's tile exist.
    DEVICE unsigned length(unsigned tile) const { return min(span->elements - tile * TILE, TILE); }
};

// ---- Element types at the door

// Eight elements as stored; `high` is used by float32 alone. Of bits, `low` has those of sixteen threads.
struct Raw {
    uint4 low, high;
};

// A thread's eight values, to be handed over in registers.
struct Values {
    float of[8];
};

// The vectors of a tile in an input of a type that may be known only now.
DEVICE unsigned vectors_of_tile(unsigned stored) {
    return stored == FLOAT_F32 ? TILE / 4 : stored == FLOAT_BIT ? TILE / 128 : TILE / 8;
}

// Where among them this thread's elements are.
DEVICE unsigned vectors_before(unsigned stored) {
    return stored == FLOAT_F32 ? threadIdx.x * 2 : stored == FLOAT_BIT ? threadIdx.x / 16 : threadIdx.x;
}

template <unsigned FLOAT>
DEVICE Raw load(const Work& work, unsigned input, unsigned tile) {
    const unsigned stored = FLOAT == FLOAT_MIXED ? work.float_of(input) : FLOAT;
    const uint4* at = work.memory + work.inputs[input];
    at += tile * vectors_of_tile(stored) + vectors_before(stored);
    Raw raw;
    raw.low = at[0];
    raw.high = stored == FLOAT_F32 ? at[1] : raw.low;
    return raw;
}

DEVICE float float_of_bf16(unsigned half) { return __uint_as_float(half << 16); }

#ifdef __CUDACC__
DEVICE float float_of_f16(unsigned half) {
    float value;
    asm("{ .reg .b16 half; cvt.u16.u32 half, %1; cvt.f32.f16 %0, half; }" : "=f"(value) : "r"(half));
    return value;
}
#else
// Subnormals are whole multiples of 2^-24, converted as integers.
DEVICE float float_of_f16(unsigned half) {
    const unsigned sign = (half & 0x8000u) << 16;
    const unsigned magnitude = half & 0x7fffu;
    const unsigned subnormal = __float_as_uint(mul(__uint2float_rn(magnitude), 5.9604644775390625e-8f));
    const unsigned normal = (magnitude << 13) + (112u << 23);
    const unsigned finite = magnitude < 0x400u ? subnormal : normal;
    const unsigned special = INFINITY_BITS | (magnitude & 0x3ffu) << 13;
    return __uint_as_float(sign | (magnitude >= 0x7c00u ? special : finite));
}
#endif

DEVICE unsigned canonical(float value) {
    const unsigned magnitude = magnitude_bits(value);
    const unsigned bits = magnitude > INFINITY_BITS ? 0x7fc00000u : __float_as_uint(value);
    return magnitude == 0 ? 0 : bits;
}

// Adding just under half an ulp, and one more when the kept part is odd, rounds to nearest even.
DEVICE unsigned bf16_of(float value) {
    const unsigned bits = __float_as_uint(value);
    const unsigned rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    const unsigned signed_zero_gone = rounded << 17 == 0 ? 0 : rounded;
    return magnitude_bits(value) > INFINITY_BITS ? 0x7fc0u : signed_zero_gone;
}

// Normal results: the exponent re-biased by 112, rounded in the integer. Subnormal results have units of 2^-24:
// adding 0.5 makes the f32 adder round to them.
DEVICE unsigned f16_of(float value) {
    const unsigned sign = __float_as_uint(value) >> 16 & 0x8000u;
    const unsigned magnitude = magnitude_bits(value);
    const unsigned normal = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
    const unsigned subnormal = __float_as_uint(add(__uint_as_float(magnitude), 0.5f)) - 0x3f000000u;
    const unsigned rounded = magnitude < 0x38800000u ? subnormal : normal;
    const unsigned finite = magnitude > F16_FINITE_MAX ? 0x7c00u : rounded;
    return magnitude > INFINITY_BITS ? 0x7e00u : finite == 0 ? 0 : sign | finite;
}

template <unsigned FLOAT>
DEVICE void decode_as(const Raw& raw, float x[8]) {
    const unsigned words[8] = {raw.low.x,  raw.low.y,  raw.low.z,  raw.low.w,
                               raw.high.x, raw.high.y, raw.high.z, raw.high.w};
#pragma unroll
    for (int i = 0; i < 8; i++) {
        if (FLOAT == FLOAT_F32) {
            x[i] = __uint_as_float(words[i]);
        } else if (FLOAT == FLOAT_BF16) {
            x[i] = i % 2 ? __uint_as_float(words[i / 2] & 0xffff0000u) : float_of_bf16(words[i / 2]);
        } else {
            x[i] = float_of_f16(i % 2 ? words[i / 2] >> 16 : words[i / 2] & 0xffffu);
        }
    }
}

// This thread's bits of a vector: a byte. Element i is bit i.
DEVICE_APART Values decode_bits(uint4 low) {
    const unsigned place = threadIdx.x / 4 % 4;
    const unsigned word = place == 0 ? low.x : place == 1 ? low.y : place == 2 ? low.z : low.w;
    const unsigned bits = word >> threadIdx.x % 4 * 8;
    Values values;
#pragma unroll
    for (int i = 0; i < 8; i++) values.of[i] = bits >> i & 1 ? 1.0f : 0.0f;
    return values;
}

// The same of a type that is known only now.
DEVICE void decode_stored(unsigned stored, const Raw& raw, float x[8]) {
    if (stored == FLOAT_F32) {
        decode_as<FLOAT_F32>(raw, x);
    } else if (stored == FLOAT_BF16) {
        decode_as<FLOAT_BF16>(raw, x);
    } else if (stored == FLOAT_BIT) {
        const Values values = decode_bits(raw.low);
#pragma unroll
        for (int i = 0; i < 8; i++) x[i] = values.of[i];
    } else {
        decode_as<FLOAT_F16>(raw, x);
    }
}

template <unsigned FLOAT>
DEVICE void decode(const Work& work, unsigned input, const Raw& raw, float x[8]) {
    if (FLOAT != FLOAT_MIXED) {
        decode_as<FLOAT>(raw, x);
        return;
    }
    decode_stored(work.float_of(input), raw, x);
}

template <unsigned FLOAT>
DEVICE void read(const Work& work, unsigned input, unsigned tile, float x[8]) {
    decode<FLOAT>(work, input, load<FLOAT>(work, input, tile), x);
}

// ---- Merged values, and the odd ones among them

DEVICE void store(const Work& work, unsigned tile, const float values[8]) {
    if (work.header->output == FLOAT_F32) {
        uint4* at = work.out + tile * (TILE / 4) + threadIdx.x * 2;
        at[0] = make_uint4(canonical(values[0]), canonical(values[1]), canonical(values[2]),
                           canonical(values[3]));
        at[1] = make_uint4(canonical(values[4]), canonical(values[5]), canonical(values[6]),
                           canonical(values[7]));
        return;
    }
    unsigned words[4];
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const float low = values[2 * i], high = values[2 * i + 1];
        words[i] = work.header->output == FLOAT_BF16 ? bf16_of(low) | bf16_of(high) << 16
                                                     : f16_of(low) | f16_of(high) << 16;
    }
    work.out[tile * (TILE / 8) + threadIdx.x] = make_uint4(words[0], words[1], words[2], words[3]);
}

// Counts NaN and infinities among the inputs of a tile, and results that overflowed: values that became infinite when
// they were stored, and those that are not finite though every input of the tile is. Inputs that only choose are not counted:
// where a kernel SELECTS by some, the job's second word says how many stand behind the others.
template <unsigned FLOAT, bool SELECTS>
DEVICE_APART void count_odd(Work work, unsigned tile, int lanes, unsigned finite_max, Values values) {
    unsigned nan = 0, infinite = 0, beyond = 0, lost = 0;
    const unsigned inputs = work.header->inputs - (SELECTS ? work.job[1] : 0);
    for (unsigned input = 0; input < inputs; input++) {
        float x[8];
        read<FLOAT>(work, input, tile, x);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            nan += i < lanes && magnitude_bits(x[i]) > INFINITY_BITS;
            infinite += i < lanes && magnitude_bits(x[i]) == INFINITY_BITS;
        }
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const unsigned magnitude = i < lanes ? magnitude_bits(values.of[i]) : 0;
        beyond += magnitude > finite_max && magnitude < INFINITY_BITS;
        lost += magnitude >= INFINITY_BITS;
    }
    const unsigned overflowed = beyond + (__syncthreads_or(nan + infinite) ? 0 : lost);
    if (nan) atomicAdd(work.tally + TALLY_NAN, nan);
    if (infinite) atomicAdd(work.tally + TALLY_INFINITE, infinite);
    if (overflowed) atomicAdd(work.tally + TALLY_OVERFLOWED, overflowed);
}

// Stores a tile's results. An input that is not finite makes its result so, in every kernel that merges: finite results
// need no second look.
template <unsigned FLOAT, bool SELECTS = false>
DEVICE void finish(const Work& work, unsigned tile, const float values[8]) {
    store(work, tile, values);
    const unsigned output = work.header->output;
    const unsigned finite_max = output == FLOAT_F32   ? INFINITY_BITS - 1
                                : output == FLOAT_F16 ? F16_FINITE_MAX
                                                      : BF16_FINITE_MAX;
    const int lanes = work.lanes(tile);
    bool odd = false;
    Values handed;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        odd |= i < lanes && magnitude_bits(values[i]) > finite_max;
        handed.of[i] = values[i];
    }
    if (__syncthreads_or(odd)) count_odd<FLOAT, SELECTS>(work, tile, lanes, finite_max, handed);
}

// ---- Random masks: Philox4x32-10 (Salmon et al., SC 2011), counter (element / 8, call)

DEVICE uint4 philox(unsigned low, unsigned high, unsigned call, unsigned key0, unsigned key1) {
    uint4 words = make_uint4(low, high, call, 0);
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const unsigned high0 = __umulhi(PHILOX_MULTIPLIER_0, words.x), low0 = PHILOX_MULTIPLIER_0 * words.x;
        const unsigned high1 = __umulhi(PHILOX_MULTIPLIER_1, words.z), low1 = PHILOX_MULTIPLIER_1 * words.z;
        words = make_uint4(high1 ^ words.y ^ key0, low1, high0 ^ words.w ^ key1, low0);
        key0 += PHILOX_WEYL_0;
        key1 += PHILOX_WEYL_1;
    }
    return words;
}

// One thread in 8,192 asks for it.
DEVICE_APART uint4 philox_again(unsigned low, unsigned high, unsigned key0, unsigned key1) {
    return philox(low, high, 1, key0, key1);
}

DEVICE unsigned draw(const uint4& words, int i) {
    const unsigned word = i / 2 == 0 ? words.x : i / 2 == 1 ? words.y : i / 2 == 2 ? words.z : words.w;
    return i % 2 ? word >> 16 : word & 0xffffu;
}

// `coefficient` for this thread's kept elements of a tile of the tensor, 0 for the others. A draw that equals the
// probability's upper half is settled by the lower half and a second call.
DEVICE void choose(unsigned tile, const Model& model, float mask[8]) {
    const unsigned low = tile * (TILE / 8) + threadIdx.x, high = tile >> 25;
    const unsigned upper = model.limit >> 16, lower = model.limit & 0xffffu;
    const uint4 words = philox(low, high, 0, model.first, model.second);
    bool undecided = false;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        mask[i] = draw(words, i) < upper ? model.coefficient : 0.0f;
        undecided |= draw(words, i) == upper;
    }
    if (!undecided) return;
    const uint4 second = philox_again(low, high, model.first, model.second);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        if (draw(words, i) == upper) mask[i] = draw(second, i) < lower ? model.coefficient : 0.0f;
    }
}

// ---- What fast paths are made of: for blocks of whole tiles in which everything is decided alike
//
// Comparisons give 1 or 0 as floats, so that choosing and counting are multiplications and additions, for which there are
// more units than for integers and logic.

#ifdef __CUDACC__
// 1 where a is not below b, which NaN is not.
DEVICE float at_least(float a, float b) {
    float flag;
    asm("set.geu.f32.f32 %0, %1, %2;" : "=f"(flag) : "f"(a), "f"(b));
    return flag;
}

// A product clamped to 0 … 1; NaN becomes 0.
DEVICE float mul_clamped(float a, float b) {
    float clamped;
    asm("mul.rn.sat.f32 %0, %1, %2;" : "=f"(clamped) : "f"(a), "f"(b));
    return clamped;
}

// All 64 bits of a product. In C++ the compiler would take it to pieces where it knows some bits of a factor.
DEVICE unsigned long long product(unsigned a, unsigned b) {
    unsigned long long wide;
    asm("mul.wide.u32 %0, %1, %2;" : "=l"(wide) : "r"(a), "r"(b));
    return wide;
}

// In a loop: what is read of shared memory is read again in every round, for want of registers.
DEVICE void keep_in_shared_memory() { asm volatile("" ::: "memory"); }

DEVICE unsigned f16_pair(float low, float high) {
    unsigned pair;
    asm("{ .reg .b16 low, high; cvt.rn.f16.f32 low, %1; cvt.rn.f16.f32 high, %2; mov.b32 %0, {low, high}; }"
        : "=r"(pair)
        : "f"(low), "f"(high));
    return pair;
}

// Added to 0 as float16, −0 becomes 0, and all other bits but those of NaN stay, bfloat16's too.
DEVICE unsigned without_signed_zeros(unsigned pair) {
    unsigned sum;
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(sum) : "r"(pair), "r"(0u));
    return sum;
}
#else
DEVICE float at_least(float a, float b) { return a < b ? 0.0f : 1.0f; }

DEVICE float mul_clamped(float a, float b) {
    const float exact = mul(a, b);
    return exact > 1.0f ? 1.0f : exact > 0.0f ? exact : 0.0f;
}

DEVICE unsigned long long product(unsigned a, unsigned b) { return (unsigned long long)a * b; }

DEVICE void keep_in_shared_memory() {}

DEVICE unsigned signed_f16_of(float value) {
    const unsigned half = f16_of(value);
    return half == 0 ? __float_as_uint(value) >> 16 & 0x8000u : half;
}

DEVICE unsigned f16_pair(float low, float high) { return signed_f16_of(low) | signed_f16_of(high) << 16; }

DEVICE unsigned plus_zero(unsigned half) {
    return (half & 0x7fffu) > 0x7c00u ? 0x7fffu : half == 0x8000u ? 0 : half;
}

DEVICE unsigned without_signed_zeros(unsigned pair) {
    return plus_zero(pair & 0xffffu) | plus_zero(pair >> 16) << 16;
}
#endif

DEVICE unsigned upper(unsigned long long wide) { return (unsigned)(wide >> 32); }
DEVICE unsigned lower(unsigned long long wide) { return (unsigned)wide; }

// A number, as the compiler must not know it: with two numbers that are known, a GPU's logic needs two instructions for
// what it can do in one. Output types are small numbers.
DEVICE unsigned unknown(const Work& work, unsigned number) { return max(number, work.header->output); }

// Whether the block's tiles are whole.
DEVICE bool whole(const Work& work) { return work.end * TILE <= work.span->elements; }

// Where a thread's elements of a tile are, in vectors.
template <unsigned FLOAT>
DEVICE unsigned place(unsigned tile) {
    return FLOAT == FLOAT_F32 ? tile * (TILE / 4) + threadIdx.x * 2 : tile * (TILE / 8) + threadIdx.x;
}

// The vectors of a tile.
template <unsigned FLOAT>
DEVICE unsigned step() {
    return FLOAT == FLOAT_F32 ? TILE / 4 : TILE / 8;
}

template <unsigned FLOAT>
DEVICE Raw load_from(const uint4* at) {
    Raw raw;
    raw.low = at[0];
    raw.high = FLOAT == FLOAT_F32 ? at[1] : raw.low;
    return raw;
}

// A thread's results in a block are ordinary where the sum of their magnitudes is at most this: then they are finite as
// they are stored, and in bfloat16 at most 2^120: from 2^121 on its arithmetic in
// float16 has NaN.
DEVICE float ordinary_max(unsigned output) {
    const unsigned bfloat16_max = 0x7b800000u;
    return __uint_as_float(output == FLOAT_BF16  ? bfloat16_max
                           : output == FLOAT_F16 ? F16_FINITE_MAX
                                                 : INFINITY_BITS - 1);
}

// Rounds as `bf16_of`, but for −0.
DEVICE unsigned bf16_pair(float low, float high) {
    const unsigned a = __float_as_uint(low), b = __float_as_uint(high);
    return __byte_perm(a + 0x7fffu + (a >> 16 & 1u), b + 0x7fffu + (b >> 16 & 1u), 0x7632);
}

// Stores ordinary results.
DEVICE void store_ordinary(unsigned output, uint4* at, const float values[8]) {
    unsigned words[8];
    if (output == FLOAT_BF16) {
#pragma unroll
        for (int i = 0; i < 4; i++) words[i] = without_signed_zeros(bf16_pair(values[2 * i], values[2 * i + 1]));
    } else if (output == FLOAT_F16) {
#pragma unroll
        for (int i = 0; i < 4; i++) words[i] = without_signed_zeros(f16_pair(values[2 * i], values[2 * i + 1]));
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) words[i] = __float_as_uint(add(values[i], 0.0f));
        at[1] = make_uint4(words[4], words[5], words[6], words[7]);
    }
    at[0] = make_uint4(words[0], words[1], words[2], words[3]);
}

// A model's random mask, prepared for tiles of the tensor below 2^25. The first product of the first round is the same for
// all models, its second one is 0; the first product of the second round is the same for all elements. `first` is what is
// left of these rounds, `rounds` are the keys of the others.
struct Schedule {
    uint4 first;
    uint4 rounds[4];
};

constexpr unsigned SCHEDULED_TILES = 1u << 25;

DEVICE Schedule schedule_of(const Model& model) {
    const unsigned key0 = model.first, key1 = model.second;
    const unsigned long long product0 = product(PHILOX_MULTIPLIER_0, key0);
    Schedule schedule;
    schedule.first =
        make_uint4(key1, key0 + PHILOX_WEYL_0, upper(product0) ^ (key1 + PHILOX_WEYL_1), lower(product0));
#pragma unroll
    for (unsigned i = 0; i < 4; i++) {
        const unsigned now = 2 * i + 2, next = now + 1;
        schedule.rounds[i] = make_uint4(key0 + now * PHILOX_WEYL_0, key1 + now * PHILOX_WEYL_1,
                                        key0 + next * PHILOX_WEYL_0, key1 + next * PHILOX_WEYL_1);
    }
    return schedule;
}

DEVICE uint4 philox_round(const uint4& words, unsigned key0, unsigned key1) {
    const unsigned long long product0 = product(PHILOX_MULTIPLIER_0, words.x);
    const unsigned long long product1 = product(PHILOX_MULTIPLIER_1, words.z);
    return make_uint4(upper(product1) ^ words.y ^ key0, lower(product1), upper(product0) ^ words.w ^ key1,
                      lower(product0));
}

// What `philox` gives; `product0` is that of the call's number and the first multiplier.
DEVICE uint4 philox_scheduled(unsigned long long product0, const Schedule& schedule) {
    const uint4 first = schedule.first;
    const unsigned long long product1 = product(PHILOX_MULTIPLIER_1, upper(product0) ^ first.x);
    uint4 words =
        make_uint4(upper(product1) ^ first.y, lower(product1), lower(product0) ^ first.z, first.w);
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const uint4 keys = schedule.rounds[i];
        words = philox_round(philox_round(words, keys.x, keys.y), keys.z, keys.w);
    }
    return words;
}

// The values that are kept, 0 for the others, and whether a draw is undecided: then `choose` has to be asked. `shift` is
// 2^16: one product moves both draws of a word to where each stands alone.
DEVICE bool choose_scheduled(unsigned long long product0, const Schedule& schedule, unsigned limit, unsigned shift,
                             const float values[8], float kept[8]) {
    const uint4 words = philox_scheduled(product0, schedule);
    const unsigned of[4] = {words.x, words.y, words.z, words.w};
    const unsigned even = limit & 0xffff0000u, odd = limit >> 16;
    bool undecided = false;
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const unsigned long long draws = product(of[i], shift);
        kept[2 * i] = lower(draws) < even ? values[2 * i] : 0.0f;
        kept[2 * i + 1] = upper(draws) < odd ? values[2 * i + 1] : 0.0f;
        undecided |= lower(draws) == even;
        undecided |= upper(draws) == odd;
    }
    return undecided;
}

// ---- Task vectors

// v = (kept ? coefficient : 0) · (x − base), for a tile of the tensor. Where magnitudes decide, the result is how many of
// this thread's elements are kept, of those that exist.
DEVICE unsigned weighted_delta(const Model& model, unsigned tile, int lanes, const float x[8],
                               const float base[8], float v[8]) {
    if (model.keep == KEEP_DROP) {
        choose(tile, model, v);
#pragma unroll
        for (int i = 0; i < 8; i++) v[i] = mul(v[i], sub(x[i], base[i]));
        return 0;
    }
    // Of the keys equal to the threshold, those before the cut are kept. Where all are, the threshold is −1.
    const int cut = tile < model.first ? TILE : tile == model.first ? model.second : 0;
    unsigned kept = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const float delta = sub(x[i], base[i]);
        const int smallest = (int)model.limit + ((int)threadIdx.x * 8 + i < cut ? 0 : 1);
        const bool keep = key_of(delta) >= smallest;
        v[i] = mul(keep ? model.coefficient : 0.0f, delta);
        kept += keep && i < lanes;
    }
    return kept;
}

// The keys of this thread's elements of one model; −1 past the end, which is below every key.
template <unsigned FLOAT>
DEVICE void keys_of(const Work& work, unsigned input, const Raw& raw, const float base[8], int lanes,
                    int keys[8]) {
    float x[8];
    decode<FLOAT>(work, input, raw, x);
#pragma unroll
    for (int i = 0; i < 8; i++) keys[i] = i < lanes ? key_of(sub(x[i], base[i])) : -1;
}

// ---- Sums in the contract's order

// A thread's group of eight.
DEVICE float group_sum(const float terms[8]) {
    return add(add(add(terms[0], terms[1]), add(terms[2], terms[3])),
               add(add(terms[4], terms[5]), add(terms[6], terms[7])));
}

// Sums that are folded together, at most; what they share is 128 group sums each.
constexpr unsigned SUMS_MAX = 2 * VOTERS_MAX;

struct GroupSums {
    float of[SUMS_MAX][THREADS];
};

// Folds a sum's 128 group sums by halves; a warp together.
DEVICE void fold_one(const float* of, float* sum) {
    const unsigned lane = threadIdx.x % 32;
    float total = add(add(of[lane], of[lane + 64]), add(of[lane + 32], of[lane + 96]));
#pragma unroll
    for (int half = 16; half > 0; half /= 2) {
        total = add(total, __shfl_down_sync(0xffffffffu, total, half));
    }
    if (lane == 0) *sum = total;
}

// Folds the tile's sums and writes them. Every thread calls it.
DEVICE void fold(const GroupSums& groups, unsigned count, float* sums) {
    __syncthreads();
    for (unsigned sum = threadIdx.x / 32; sum < count; sum += THREADS / 32) fold_one(groups.of[sum], sums + sum);
    __syncthreads();
}

// The same for a number of sums that is known.
template <unsigned COUNT>
DEVICE void fold_known(const GroupSums& groups, float* sums) {
    constexpr unsigned WARPS = THREADS / 32;
    __syncthreads();
#pragma unroll
    for (unsigned first = 0; first < COUNT; first += WARPS) {
        const unsigned sum = first + threadIdx.x / 32;
        if (first + WARPS <= COUNT || sum < COUNT) fold_one(groups.of[sum], sums + sum);
    }
    __syncthreads();
}

// ---- Counters

DEVICE unsigned warp_sum(unsigned count) {
#pragma unroll
    for (int half = 16; half > 0; half /= 2) count += __shfl_down_sync(0xffffffffu, count, half);
    return count;
}

// Adds a thread's count to a counter of its block, once per warp.
DEVICE void add_up(unsigned* of_block, unsigned count) {
    count = warp_sum(count);
    if (threadIdx.x % 32 == 0 && count) atomicAdd(of_block, count);
}
