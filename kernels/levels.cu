// Counts of task-vector magnitudes at a few given keys: at or above each level, and equal to it.
//
// One counting sweep reads every input once. Each thread counts its own eight keys and warps add up, so equal data
// does not queue at one counter; one atomic per warp, level and tile goes to shared memory.
#include "prelude.cuh"

template <unsigned FLOAT>
DEVICE void levels(const Work& work) {
    // The kernel's parameters per model: how many levels, then their keys.
    constexpr unsigned JOB_WORDS = 1 + LEVELS_MAX;
    constexpr unsigned BATCH = 4;
    __shared__ unsigned counts[VOTERS_MAX * LEVELS_WORDS];
    const unsigned models = work.header->inputs - 1;
    for (unsigned i = threadIdx.x; i < models * LEVELS_WORDS; i += THREADS) counts[i] = 0;
    __syncthreads();
    for (unsigned tile = work.first; tile < work.end; tile++) {
        const int lanes = work.lanes(tile);
        float base[8];
        const Raw raw_base = load<FLOAT>(work, 0, tile);
        for (unsigned model = 0; model < models; model += BATCH) {
            Raw raw[BATCH];
#pragma unroll
            for (unsigned k = 0; k < BATCH; k++) {
                if (model + k < models) raw[k] = load<FLOAT>(work, model + k + 1, tile);
            }
            decode<FLOAT>(work, 0, raw_base, base);
#pragma unroll
            for (unsigned k = 0; k < BATCH; k++) {
                if (model + k >= models) continue;
                int own[8];
                keys_of<FLOAT>(work, model + k + 1, raw[k], base, lanes, own);
                const unsigned* job = work.job + (model + k) * JOB_WORDS;
                for (unsigned level = 0; level < job[0]; level++) {
                    const int key = job[1 + level];
                    // Both counts of a warp are at most 256: they share a word while they are added up.
                    unsigned both = 0;
#pragma unroll
                    for (int i = 0; i < 8; i++) both += (own[i] >= key) + (own[i] == key ? 0x10000u : 0u);
                    both = warp_sum(both);
                    if (threadIdx.x % 32 == 0) {
                        unsigned* at = counts + (model + k) * LEVELS_WORDS + 2 * level;
                        atomicAdd(at, both & 0xffffu);
                        atomicAdd(at + 1, both >> 16);
                    }
                }
            }
        }
    }
    __syncthreads();
    unsigned* totals = reinterpret_cast<unsigned*>(work.out) + work.record * models * LEVELS_WORDS;
    for (unsigned i = threadIdx.x; i < models * LEVELS_WORDS; i += THREADS) {
        if (counts[i]) atomicAdd(totals + i, counts[i]);
    }
}

ENTRIES(levels)
