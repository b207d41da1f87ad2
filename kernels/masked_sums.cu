// Σ |xᵢ − base| and the same of what is kept of it, for every model, tile by tile: all, then kept.
//
// One measuring sweep reads every input once; a dropped term is multiplied by 0.
#include "prelude.cuh"

template <unsigned FLOAT>
DEVICE void masked_sums(const Work& work) {
    __shared__ GroupSums groups;
    const unsigned count = work.header->inputs - 1;
    const Model* models = reinterpret_cast<const Model*>(work.job);
    for (unsigned tile = work.first; tile < work.end; tile++) {
        float* sums = reinterpret_cast<float*>(work.out) + tile * 2 * count;
        const int lanes = work.lanes(tile);
        float base[8], x[8], v[8];
        read<FLOAT>(work, 0, tile, base);
        // Shared memory has room for as many models at a time as a vote may have.
        for (unsigned m = 0; m < count; m++) {
            const unsigned place = m % VOTERS_MAX;
            read<FLOAT>(work, m + 1, tile, x);
            weighted_delta(models[m], work.span->first_tile + tile, lanes, x, base, v);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                x[i] = i < lanes ? absolute(sub(x[i], base[i])) : 0.0f;
                v[i] = i < lanes ? absolute(v[i]) : 0.0f;
            }
            groups.of[2 * place][threadIdx.x] = group_sum(x);
            groups.of[2 * place + 1][threadIdx.x] = group_sum(v);
            if (place + 1 == VOTERS_MAX || m + 1 == count) fold(groups, 2 * place + 2, sums + 2 * (m - place));
        }
    }
}

ENTRIES(masked_sums)
