// Σ |xᵢ − base|, and the same and the squares of what is kept of it, for every model, tile by tile: the three side by side.
//
// One measuring sweep reads every input once; a dropped term is multiplied by 0.
#include "choice.cuh"

// Models whose sums are folded together.
constexpr unsigned MODELS_AT_ONCE = SUMS_MAX / CHOSEN_SUMS;

template <unsigned FLOAT>
DEVICE void chosen_sums(const Work& work) {
    __shared__ GroupSums groups;
    const unsigned models = work.header->inputs - 1 - work.job[0];
    const Choice* choices = reinterpret_cast<const Choice*>(work.job + 1);
    for (unsigned tile = work.first; tile < work.end; tile++) {
        float* sums = reinterpret_cast<float*>(work.out) + tile * CHOSEN_SUMS * models;
        const int lanes = work.lanes(tile);
        float base[8];
        read<FLOAT>(work, 0, tile, base);
        for (unsigned m = 0; m < models; m++) {
            const unsigned place = m % MODELS_AT_ONCE;
            float x[8], all[8], kept[8], squares[8];
            read<FLOAT>(work, m + 1, tile, x);
#pragma unroll
            for (int i = 0; i < 8; i++) x[i] = sub(x[i], base[i]);
            const unsigned is_kept = chosen<FLOAT>(work, choices[m], models, tile, x);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const float own = mul(is_kept >> i & 1 ? 1.0f : 0.0f, x[i]);
                all[i] = i < lanes ? absolute(x[i]) : 0.0f;
                kept[i] = i < lanes ? absolute(own) : 0.0f;
                squares[i] = i < lanes ? mul(own, own) : 0.0f;
            }
            groups.of[CHOSEN_SUMS * place][threadIdx.x] = group_sum(all);
            groups.of[CHOSEN_SUMS * place + 1][threadIdx.x] = group_sum(kept);
            groups.of[CHOSEN_SUMS * place + 2][threadIdx.x] = group_sum(squares);
            if (place + 1 == MODELS_AT_ONCE || m + 1 == models) {
                fold(groups, CHOSEN_SUMS * (place + 1), sums + CHOSEN_SUMS * (m - place));
            }
        }
    }
}

ENTRIES(chosen_sums)
