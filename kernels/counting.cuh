// What the counting sweeps share: whole tiles, counted against an interval of keys for each model.
//
// Few keys lie in an interval, and they alone take a way of their own, `inside`. A key that a warp finds often, as the zeros
// of a tensor that was not trained, is left out of it: each thread counts that one for itself, so that equal keys do not wait
// for each other at one counter.
#pragma once
#include "prelude.cuh"

// Tests on the CPU learn here which atomics of a warp's lanes are one instruction.
#ifndef LOCKSTEP
#define LOCKSTEP()
#endif

// Words in shared memory as instructions want them: the compiler would compute their place again for every element.
#ifdef __CUDACC__
using Shared = unsigned;
DEVICE Shared shared(unsigned* words) {
    Shared at = (Shared)__cvta_generic_to_shared(words);
    asm volatile("" : "+r"(at));
    return at;
}
DEVICE Shared behind(Shared words, unsigned count) { return words + 4 * count; }
DEVICE unsigned word(Shared words, unsigned i) {
    unsigned word;
    asm volatile("ld.shared.u32 %0, [%1];" : "=r"(word) : "r"(behind(words, i)) : "memory");
    return word;
}
DEVICE void add_to(Shared words, unsigned i, unsigned count) {
    asm volatile("red.shared.add.u32 [%0], %1;" ::"r"(behind(words, i)), "r"(count) : "memory");
}
#else
using Shared = unsigned*;
DEVICE Shared shared(unsigned* words) { return words; }
DEVICE Shared behind(Shared words, unsigned count) { return words + count; }
DEVICE unsigned word(Shared words, unsigned i) { return words[i]; }
DEVICE void add_to(Shared words, unsigned i, unsigned count) { atomicAdd(words + i, count); }
#endif

// Adds 1 in the units for floats, which have less to do than those for integers.
DEVICE void count_if(bool counts, float& counter) {
#ifdef __CUDACC__
    asm("{\n\t.reg .pred counts;\n\tsetp.ne.u32 counts, %1, 0;\n\t@counts add.rn.f32 %0, %0, 1.0;\n\t}"
        : "+f"(counter)
        : "r"((unsigned)counts));
#else
    counter = add(counter, counts ? 1.0f : 0.0f);
#endif
}

// An input's elements of this thread, found once for all tiles of a block.
template <unsigned FLOAT>
struct Input {
    unsigned stored;
    const uint4* first;

    DEVICE void find(const Work& work, unsigned input) {
        stored = FLOAT == FLOAT_MIXED ? work.float_of(input) : FLOAT;
        first = work.memory + work.inputs[input] + vectors_before(stored);
    }
    DEVICE Raw load(unsigned tile) const {
        const uint4* at = first + tile * vectors_of_tile(stored);
        Raw raw;
        raw.low = at[0];
        raw.high = stored == FLOAT_F32 ? at[1] : raw.low;
        return raw;
    }
    DEVICE void decode(const Raw& raw, float x[8]) const {
        decode_stored(stored, raw, x);
    }
};

// An interval of keys, from `lowest` on. A key's place is twice its distance from `lowest`, modulo 2^32: doubled, a delta has
// lost its sign. The interval ends at KEY_MAX at the most, which has two consequences. Keys below have places of at least
// 2^32 - 2 * lowest, behind `end`. And NaN is above, with the bits of KEY_MAX or any other.
struct Interval {
    float lowest_delta;
    unsigned twice_lowest, end;
    // The place of a key that this warp counts apart. Places are even: 1 is that of none.
    unsigned common;

    DEVICE unsigned place_of(float delta) const { return 2 * __float_as_uint(delta) - twice_lowest; }
};

constexpr unsigned NO_PLACE = 1;

// `keys` of them; without a common one.
DEVICE Interval interval_of(unsigned lowest, unsigned keys) {
    return {__uint_as_float(lowest), 2 * lowest, 2 * keys, NO_PLACE};
}

// What a thread counts of a model in a block: by ones, whose sums are exact up to 2^24. A block has few tiles.
struct Counted {
    unsigned below;
    float common;
};

// The difference's sign says whether a key is below: it is 0 for equal numbers alone, and a NaN has none.
template <bool COMMON, class Inside>
DEVICE void count(const Interval& interval, const float x[8], const float base[8], Counted& counted,
                  Inside& inside) {
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const float delta = sub(x[i], base[i]);
        const unsigned place = interval.place_of(delta);
        counted.below += __float_as_uint(sub(fabsf(delta), interval.lowest_delta)) >> 31;
        const bool common = COMMON && place == interval.common;
        LOCKSTEP();
        if (COMMON) count_if(common, counted.common);
        if (place < interval.end && !common) inside.count(place);
    }
}

// The place of a thread's first element in some tile.
template <unsigned FLOAT>
DEVICE unsigned first_place(const Input<FLOAT>& base_input, const Input<FLOAT>& input, unsigned tile,
                            const Interval& interval) {
    float base[8], x[8];
    base_input.decode(base_input.load(tile), base);
    input.decode(input.load(tile), x);
    return interval.place_of(sub(x[0], base[0]));
}

template <bool COMMON, unsigned FLOAT, unsigned MODELS, class Inside>
DEVICE void count_tiles(const Input<FLOAT> inputs[1 + MODELS], unsigned models, unsigned tile, unsigned end,
                        const Interval intervals[MODELS], Counted counted[MODELS], Inside inside[MODELS]) {
    for (; tile < end; tile++) {
        Raw raw[1 + MODELS];
        float base[8], x[8];
#pragma unroll
        for (unsigned i = 0; i <= MODELS; i++) {
            if (i <= models) raw[i] = inputs[i].load(tile);
        }
        inputs[0].decode(raw[0], base);
#pragma unroll
        for (unsigned m = 0; m < MODELS; m++) {
            if (m >= models) continue;
            inputs[1 + m].decode(raw[1 + m], x);
            count<COMMON>(intervals[m], x, base, counted[m], inside[m]);
        }
    }
}
