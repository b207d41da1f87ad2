// out = x₀ + (c₀ x₀ + Σ cᵢ (xᵢ − x₀)), with coefficients for each row or column. Moves every input once and the output once.
#include "prelude.cuh"

template <unsigned FLOAT>
DEVICE void segment_sum(const Work& work) {
    const bool by_columns = work.job[0] == BY_COLUMNS;
    const unsigned columns = work.job[1], start = work.job[2], segments = work.job[3];
    const float* coefficients = reinterpret_cast<const float*>(work.job + 4);
    const unsigned inputs = work.header->inputs;
    for (unsigned tile = work.first; tile < work.end; tile++) {
        // Past the end there may be no segment any more; those lanes take the last one.
        unsigned segment[8];
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const unsigned element = start + tile * TILE + threadIdx.x * 8 + i;
            segment[i] = min(by_columns ? element % columns : element / columns, segments - 1);
        }
        float first[8], sum[8], x[8];
        read<FLOAT>(work, 0, tile, first);
#pragma unroll
        for (int i = 0; i < 8; i++) sum[i] = mul(coefficients[segment[i]], first[i]);
        for (unsigned input = 1; input < inputs; input++) {
            const float* c = coefficients + input * segments;
            read<FLOAT>(work, input, tile, x);
#pragma unroll
            for (int i = 0; i < 8; i++) sum[i] = add(sum[i], mul(c[segment[i]], sub(x[i], first[i])));
        }
#pragma unroll
        for (int i = 0; i < 8; i++) sum[i] = add(sum[i], first[i]);
        finish<FLOAT>(work, tile, sum);
    }
}

ENTRIES(segment_sum)
