// out = Σ cᵢ xᵢ, or around an anchor out = x₀ + Σ cᵢ (xᵢ − x₀). Moves every input once and the output once.
//
// Four inputs are loaded before the first of them is used, so that enough bytes are in flight.
#include "prelude.cuh"

template <unsigned FLOAT>
DEVICE void weighted_sum(const Work& work) {
    constexpr unsigned BATCH = 4;
    const bool anchored = work.job[0] != 0;
    const float* coefficients = reinterpret_cast<const float*>(work.job + 1);
    const unsigned inputs = work.header->inputs;
    for (unsigned tile = work.first; tile < work.end; tile++) {
        float first[8], sum[8];
        const Raw raw_first = load<FLOAT>(work, 0, tile);
        for (unsigned input = 1; input < inputs + (inputs == 1); input += BATCH) {
            Raw raw[BATCH];
#pragma unroll
            for (unsigned i = 0; i < BATCH; i++) {
                if (input + i < inputs) raw[i] = load<FLOAT>(work, input + i, tile);
            }
            if (input == 1) {
                decode<FLOAT>(work, 0, raw_first, first);
#pragma unroll
                for (int i = 0; i < 8; i++) sum[i] = anchored ? 0.0f : mul(coefficients[0], first[i]);
            }
#pragma unroll
            for (unsigned k = 0; k < BATCH; k++) {
                if (input + k >= inputs) continue;
                const float c = coefficients[input + k];
                float x[8];
                decode<FLOAT>(work, input + k, raw[k], x);
#pragma unroll
                for (int i = 0; i < 8; i++) {
                    sum[i] = add(sum[i], mul(c, anchored ? sub(x[i], first[i]) : x[i]));
                }
            }
        }
        if (anchored) {
#pragma unroll
            for (int i = 0; i < 8; i++) sum[i] = add(sum[i], first[i]);
        }
        finish<FLOAT>(work, tile, sum);
    }
}

ENTRIES(weighted_sum)
