// Counts of task-vector magnitudes around the k-th largest: bins of a bracket, keys above it, keys with low bits.
//
// One counting sweep reads every input once. Counters of up to MODELS models lie in shared memory; the grid's second
// dimension walks over more. Where many keys are equal, a warp adds the lanes that share the first lane's bin at once,
// twice; what is left goes one by one.
#include "prelude.cuh"

// Adds one to a counter for every lane whose bin is not negative. Every lane of the warp calls it.
DEVICE void count_bins(unsigned* counts, int bin) {
#pragma unroll
    for (int round = 0; round < 2; round++) {
        const unsigned waiting = __ballot_sync(0xffffffffu, bin >= 0);
        if (waiting == 0) return;
        const int leader = __ffs(waiting) - 1;
        const int common = __shfl_sync(0xffffffffu, bin, leader);
        const unsigned equal = __ballot_sync(0xffffffffu, bin == common);
        if (threadIdx.x % 32 == leader) atomicAdd(counts + common, __popc(equal));
        if (bin == common) bin = -1;
    }
    if (bin >= 0) atomicAdd(counts + bin, 1u);
}

template <unsigned FLOAT, unsigned MODELS>
DEVICE void magnitudes(const Work& work) {
    __shared__ unsigned counts[MODELS * MAGNITUDES_WORDS];
    const unsigned first_model = blockIdx.y * MODELS;
    const unsigned models = min(work.header->inputs - 1 - first_model, MODELS);
    const Bracket* brackets = reinterpret_cast<const Bracket*>(work.job) + first_model;
    for (unsigned i = threadIdx.x; i < MODELS * MAGNITUDES_WORDS; i += THREADS) counts[i] = 0;
    __syncthreads();
    for (unsigned tile = work.first; tile < work.end; tile++) {
        const int lanes = work.lanes(tile);
        float base[8];
        Raw raw[MODELS];
        const Raw raw_base = load<FLOAT>(work, 0, tile);
#pragma unroll
        for (unsigned m = 0; m < MODELS; m++) {
            if (m < models) raw[m] = load<FLOAT>(work, first_model + m + 1, tile);
        }
        decode<FLOAT>(work, 0, raw_base, base);
#pragma unroll
        for (unsigned m = 0; m < MODELS; m++) {
            if (m >= models) continue;
            int own[8];
            keys_of<FLOAT>(work, first_model + m + 1, raw[m], base, lanes, own);
            const int lowest = brackets[m].lowest;
            const unsigned shift = brackets[m].shift, low_bits = (1u << shift) - 1;
            unsigned above = 0, uneven = 0;
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const bool reached = own[i] >= lowest;
                const unsigned bin = (unsigned)(own[i] - lowest) >> shift;
                const bool inside = reached && bin < BINS;
                above += reached && !inside;
                uneven += inside && (own[i] & low_bits) != 0;
                count_bins(counts + m * MAGNITUDES_WORDS, inside ? (int)bin : -1);
            }
            const unsigned both = warp_sum(above | uneven << 16);
            if (threadIdx.x % 32 == 0) {
                atomicAdd(counts + m * MAGNITUDES_WORDS + ABOVE, both & 0xffffu);
                atomicAdd(counts + m * MAGNITUDES_WORDS + UNEVEN, both >> 16);
            }
        }
    }
    __syncthreads();
    const unsigned before = work.record * (work.header->inputs - 1) + first_model;
    unsigned* totals = reinterpret_cast<unsigned*>(work.out) + before * MAGNITUDES_WORDS;
    for (unsigned i = threadIdx.x; i < models * MAGNITUDES_WORDS; i += THREADS) {
        if (counts[i]) atomicAdd(totals + i, counts[i]);
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
