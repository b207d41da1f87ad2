// How many elements each model holds, and how many it alone holds: those whose magnitude is above its threshold.
//
// One counting sweep reads every input once. A thread finds the holders of its eight elements before it counts any, and warps
// add up, so equal data does not queue at one counter.
#include "prelude.cuh"

template <unsigned FLOAT>
DEVICE void holders(const Work& work) {
    const unsigned models = work.header->inputs - 1;
    __shared__ unsigned counts[HOLDERS_WORDS * VOTERS_MAX];
    if (threadIdx.x < HOLDERS_WORDS * models) counts[threadIdx.x] = 0;
    __syncthreads();
    for (unsigned tile = work.first; tile < work.end; tile++) {
        const int lanes = work.lanes(tile);
        // Of each element, a bit for each model that holds it.
        unsigned held_by[8] = {};
        float base[8];
        read<FLOAT>(work, 0, tile, base);
        for (unsigned m = 0; m < models; m++) {
            const int threshold = (int)work.job[m];
            int own[8];
            keys_of<FLOAT>(work, m + 1, load<FLOAT>(work, m + 1, tile), base, lanes, own);
#pragma unroll
            for (int i = 0; i < 8; i++) held_by[i] |= (unsigned)(own[i] > threshold) << m;
        }
        for (unsigned m = 0; m < models; m++) {
            unsigned held = 0, alone = 0;
#pragma unroll
            for (int i = 0; i < 8; i++) {
                held += held_by[i] >> m & 1;
                alone += held_by[i] == 1u << m;
            }
            // Both counts of a warp are at most 256: they share a word while they are added up.
            const unsigned together = warp_sum(held | alone << 16);
            if (threadIdx.x % 32 == 0 && together) {
                atomicAdd(counts + HOLDERS_WORDS * m, together & 0xffffu);
                atomicAdd(counts + HOLDERS_WORDS * m + 1, together >> 16);
            }
        }
    }
    __syncthreads();
    unsigned* totals = reinterpret_cast<unsigned*>(work.out) + work.record * HOLDERS_WORDS * models;
    if (threadIdx.x < HOLDERS_WORDS * models && counts[threadIdx.x]) {
        atomicAdd(totals + threadIdx.x, counts[threadIdx.x]);
    }
}

ENTRIES(holders)
