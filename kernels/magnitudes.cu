// Counts of task-vector magnitudes around the k-th largest: bins of a bracket, keys above it, keys with low bits.
//
// One counting sweep reads every input once. The bins of up to MODELS models lie in shared memory; the grid's second
// dimension walks over more. Threads add keys to their bins one by one, where equal ones of a warp wait for each other;
// a key that a warp finds often in its first tile is counted by each thread for itself.
#include "counting.cuh"

// As many equal keys among a warp's 32 make the comparison of all keys worthwhile.
constexpr unsigned OFTEN = 8;

// Keys in the bracket.
struct Binned {
    Shared bins;
    unsigned shift, low_bits;
    float uneven;

    DEVICE void count(unsigned place) {
        add_to(bins, place >> shift, 1);
        count_if((place & low_bits) != 0, uneven);
    }
};

// The place of a key that many lanes have, or else of zero, if that is inside: other rows of a tensor may hold nothing else.
DEVICE unsigned common_place(unsigned place, const Interval& interval) {
    unsigned common = interval.twice_lowest == 0 ? 0 : NO_PLACE, most = OFTEN - 1;
#pragma unroll
    for (int lane = 0; lane < 32; lane += 8) {
        const unsigned candidate = __shfl_sync(0xffffffffu, place, lane);
        const unsigned equal = __popc(__ballot_sync(0xffffffffu, place == candidate && place < interval.end));
        if (equal > most) common = candidate;
        most = max(most, equal);
    }
    return common;
}

// Any tile and any bracket. Keys inside count as above too: in the end, what is in bins is taken off.
template <unsigned FLOAT>
DEVICE_APART void count_apart(Work work, unsigned tile, unsigned model, unsigned* bins, unsigned* totals) {
    const Bracket* bracket = reinterpret_cast<const Bracket*>(work.job) + model;
    const int lowest = bracket->lowest;
    const unsigned shift = bracket->shift, low_bits = (1u << shift) - 1;
    float base[8];
    read<FLOAT>(work, 0, tile, base);
    int own[8];
    keys_of<FLOAT>(work, model + 1, load<FLOAT>(work, model + 1, tile), base, work.lanes(tile), own);
    unsigned above = 0, uneven = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const bool reached = own[i] >= lowest;
        const unsigned bin = (unsigned)(own[i] - lowest) >> shift;
        const bool inside = reached && bin < BINS;
        above += reached;
        uneven += inside && (own[i] & low_bits) != 0;
        LOCKSTEP();
        if (inside) atomicAdd(bins + bin, 1u);
    }
    add_up(totals + ABOVE, above);
    add_up(totals + UNEVEN, uneven);
}

template <unsigned FLOAT, unsigned MODELS>
DEVICE void magnitudes(const Work& work) {
    __shared__ unsigned bins[MODELS][BINS];
    const unsigned all_models = work.header->inputs - 1, first_model = blockIdx.y * MODELS;
    // An entry for few models runs for exactly as many.
    const unsigned models = MODELS < GROUP_MODELS ? MODELS : min(all_models - first_model, MODELS);
    unsigned* totals =
        reinterpret_cast<unsigned*>(work.out) + (work.record * all_models + first_model) * MAGNITUDES_WORDS;
    for (unsigned i = threadIdx.x; i < MODELS * BINS; i += THREADS) bins[i / BINS][i % BINS] = 0;

    Input<FLOAT> inputs[1 + MODELS];
    Interval intervals[MODELS];
    Counted counted[MODELS] = {};
    Binned binned[MODELS];
    bool ordinary = true;
    inputs[0].find(work, 0);
#pragma unroll
    for (unsigned m = 0; m < MODELS; m++) {
        if (m >= models) continue;
        inputs[1 + m].find(work, first_model + m + 1);
        const Bracket* bracket = reinterpret_cast<const Bracket*>(work.job) + first_model + m;
        const unsigned lowest = bracket->lowest, shift = bracket->shift;
        ordinary &= shift < 20 && lowest + (BINS << shift) <= KEY_MAX;
        intervals[m] = interval_of(lowest, BINS << shift);
        binned[m] = {shared(bins[m]), shift + 1, (2u << shift) - 2, 0.0f};
    }
    const unsigned whole = ordinary ? max(work.first, min(work.end, work.span->elements / TILE)) : work.first;
    bool often = false;
#pragma unroll
    for (unsigned m = 0; m < MODELS; m++) {
        if (m >= models || whole == work.first) continue;
        const unsigned place = first_place(inputs[0], inputs[1 + m], work.first, intervals[m]);
        intervals[m].common = common_place(place, intervals[m]);
        often |= intervals[m].common != NO_PLACE;
    }
    __syncthreads();
    if (often) {
        count_tiles<true, FLOAT, MODELS>(inputs, models, work.first, whole, intervals, counted, binned);
    } else {
        count_tiles<false, FLOAT, MODELS>(inputs, models, work.first, whole, intervals, counted, binned);
    }
    for (unsigned tile = whole; tile < work.end; tile++) {
        for (unsigned m = 0; m < models; m++) {
            count_apart<FLOAT>(work, tile, first_model + m, bins[m], totals + m * MAGNITUDES_WORDS);
        }
    }
#pragma unroll
    for (unsigned m = 0; m < MODELS; m++) {
        const unsigned common = intervals[m].common;
        if (m >= models || common == NO_PLACE) continue;
        add_up(bins[m] + (common >> binned[m].shift), (unsigned)counted[m].common);
        if (common & binned[m].low_bits) binned[m].uneven = add(binned[m].uneven, counted[m].common);
    }
    __syncthreads();
#pragma unroll
    for (unsigned m = 0; m < MODELS; m++) {
        if (m >= models) continue;
        // What is not below, nor in a bin.
        unsigned above = 8 * (whole - work.first) - counted[m].below;
        for (unsigned i = threadIdx.x; i < BINS; i += THREADS) {
            const unsigned count = bins[m][i];
            if (count) atomicAdd(totals + i, count);
            above -= count;
        }
        add_up(totals + ABOVE, above);
        add_up(totals + UNEVEN, (unsigned)binned[m].uneven);
        totals += MAGNITUDES_WORDS;
    }
}

#define MAGNITUDES(name, FLOAT)                                                                           \
    ENTRY(magnitudes_1_##name, magnitudes<FLOAT, 1>)                                                      \
    ENTRY(magnitudes_2_##name, magnitudes<FLOAT, 2>)                                                      \
    ENTRY(magnitudes_##name, magnitudes<FLOAT, GROUP_MODELS>)

MAGNITUDES(float32, FLOAT_F32)
MAGNITUDES(float16, FLOAT_F16)
MAGNITUDES(bfloat16, FLOAT_BF16)
MAGNITUDES(mixed, FLOAT_MIXED)
