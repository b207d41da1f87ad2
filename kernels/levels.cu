// Counts of task-vector magnitudes at a few given keys, in ascending order: at or above each level, and equal to it.
//
// One counting sweep reads every model once, and the base once for each group of them. Mostly one level has nearly all keys that are between the levels: each thread
// counts it for itself. Others look up which levels they are between, and count there; what is at or above a level follows in
// the end. Models are counted in groups, so that a thread has room for what it knows of each.
#include "counting.cuh"

// The kernel's parameters per model: how many levels, then their keys.
constexpr unsigned JOB_WORDS = 1 + LEVELS_MAX;

// Behind every place.
constexpr unsigned NEVER_REACHED = 0xffffffffu;

// A level in shared memory: its place, and counts of the keys behind it and before the next one, and of those equal to it.
struct Level {
    unsigned place, behind, equal;
};
constexpr unsigned LEVEL_WORDS = sizeof(Level) / 4;
constexpr unsigned BEHIND = offsetof(Level, behind) / 4, EQUAL = offsetof(Level, equal) / 4;

// A model's levels, as many as there can be, and how many keys are at or above the first.
struct Table {
    Level levels[LEVELS_MAX];
    unsigned reached;
};

// Keys from the first level to the last.
struct Placed {
    Shared levels;

    // To the last level that is not behind them, which is found by halves.
    DEVICE void add(unsigned place, unsigned keys) const {
        Shared level = levels;
#pragma unroll
        for (unsigned half = LEVELS_MAX / 2; half > 0; half /= 2) {
            if (word(level, half * LEVEL_WORDS) <= place) level = behind(level, half * LEVEL_WORDS);
        }
        add_to(level, word(level, 0) == place ? EQUAL : BEHIND, keys);
    }
    DEVICE void count(unsigned place) { add(place, 1); }
};

// The place of some key inside, likely one that many lanes have; or else of the first level.
DEVICE unsigned common_place(unsigned place, unsigned end) {
    const unsigned inside = __ballot_sync(0xffffffffu, place < end);
    const unsigned some = __shfl_sync(0xffffffffu, place, inside ? __ffs(inside) - 1 : 0);
    return inside ? some : 0;
}

// Any tile and any levels.
template <unsigned FLOAT>
DEVICE_APART void count_apart(Work work, unsigned tile, unsigned model, unsigned* totals) {
    const unsigned* job = work.job + model * JOB_WORDS;
    float base[8];
    read<FLOAT>(work, 0, tile, base);
    int own[8];
    keys_of<FLOAT>(work, model + 1, load<FLOAT>(work, model + 1, tile), base, work.lanes(tile), own);
    for (unsigned level = 0; level < job[0]; level++) {
        const int key = job[1 + level];
        unsigned reached = 0, equal = 0;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            reached += own[i] >= key;
            equal += own[i] == key;
        }
        add_up(totals + 2 * level, reached);
        add_up(totals + 2 * level + 1, equal);
    }
}

template <unsigned FLOAT, unsigned MODELS>
DEVICE void count_group(const Work& work, Table* tables, unsigned first_model, unsigned models) {
    unsigned* totals = reinterpret_cast<unsigned*>(work.out) +
                       (work.record * (work.header->inputs - 1) + first_model) * LEVELS_WORDS;
    Input<FLOAT> inputs[1 + MODELS];
    Interval intervals[MODELS];
    Counted counted[MODELS] = {};
    Placed placed[MODELS];
    bool ordinary = true;
    inputs[0].find(work, 0);
#pragma unroll
    for (unsigned m = 0; m < MODELS; m++) {
        if (m >= models) continue;
        inputs[1 + m].find(work, first_model + m + 1);
        const unsigned* job = work.job + (first_model + m) * JOB_WORDS;
        const unsigned lowest = job[1], last = job[max(job[0], 1u)];
        ordinary &= last < KEY_MAX;
        intervals[m] = interval_of(lowest, last + 1 - lowest);
        placed[m] = {shared(&tables[m].levels[0].place)};
        const unsigned i = threadIdx.x;
        if (i < LEVELS_MAX) tables[m].levels[i] = {i < job[0] ? 2 * (job[1 + i] - lowest) : NEVER_REACHED, 0, 0};
        if (i == 0) tables[m].reached = 0;
    }
    const unsigned whole = ordinary ? max(work.first, min(work.end, work.span->elements / TILE)) : work.first;
#pragma unroll
    for (unsigned m = 0; m < MODELS; m++) {
        if (m >= models || whole == work.first) continue;
        const unsigned place = first_place(inputs[0], inputs[1 + m], work.first, intervals[m]);
        intervals[m].common = common_place(place, intervals[m].end);
    }
    __syncthreads();
    count_tiles<true, FLOAT, MODELS>(inputs, models, work.first, whole, intervals, counted, placed);
    for (unsigned tile = whole; tile < work.end; tile++) {
        for (unsigned m = 0; m < models; m++) {
            count_apart<FLOAT>(work, tile, first_model + m, totals + m * LEVELS_WORDS);
        }
    }
#pragma unroll
    for (unsigned m = 0; m < MODELS; m++) {
        if (m >= models) continue;
        add_up(&tables[m].reached, 8 * (whole - work.first) - counted[m].below);
        const unsigned common = intervals[m].common;
        if (common == NO_PLACE) continue;
        const unsigned keys = warp_sum((unsigned)counted[m].common);
        if (threadIdx.x % 32 == 0) placed[m].add(common, keys);
    }
    __syncthreads();
    static_assert(GROUP_MODELS * LEVELS_WORDS <= THREADS, "each counter has a thread");
    const unsigned m = threadIdx.x / LEVELS_WORDS, word = threadIdx.x % LEVELS_WORDS;
    if (m < models && word < 2 * work.job[(first_model + m) * JOB_WORDS]) {
        const Level* levels = tables[m].levels;
        unsigned count = word % 2 ? levels[word / 2].equal : tables[m].reached;
        for (unsigned i = 0; word % 2 == 0 && i < word / 2; i++) count -= levels[i].equal + levels[i].behind;
        if (count) atomicAdd(totals + threadIdx.x, count);
    }
}

template <unsigned FLOAT, unsigned MODELS>
DEVICE void levels(const Work& work) {
    __shared__ Table tables[MODELS];
    // An entry for few models runs for exactly as many.
    if (MODELS < GROUP_MODELS) {
        count_group<FLOAT, MODELS>(work, tables, 0, MODELS);
        return;
    }
    const unsigned all_models = work.header->inputs - 1;
    for (unsigned first = 0; first < all_models; first += MODELS) {
        count_group<FLOAT, MODELS>(work, tables, first, min(all_models - first, MODELS));
        __syncthreads();
    }
}

#define LEVELS(name, FLOAT)                                                                               \
    ENTRY(levels_1_##name, levels<FLOAT, 1>)                                                              \
    ENTRY(levels_2_##name, levels<FLOAT, 2>)                                                              \
    ENTRY(levels_##name, levels<FLOAT, GROUP_MODELS>)

LEVELS(float32, FLOAT_F32)
LEVELS(float16, FLOAT_F16)
LEVELS(bfloat16, FLOAT_BF16)
LEVELS(mixed, FLOAT_MIXED)
