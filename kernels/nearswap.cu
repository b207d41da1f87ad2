// A model drawn to the base where they are near each other, and kept by the base where they are not. With d = x − base:
//
//   |d| < near   out = base + factor · d
//   |d| ≤ t      out = x
//   else         out = base ± t, with the sign of d
//
// and 0 · d is added to each. Moves both inputs and the output once.
#include "prelude.cuh"

template <unsigned FLOAT>
DEVICE void nearswap(const Work& work) {
    const Nearness nearness = *reinterpret_cast<const Nearness*>(work.job);
    for (unsigned tile = work.first; tile < work.end; tile++) {
        const Raw raw_base = load<FLOAT>(work, 0, tile), raw = load<FLOAT>(work, 1, tile);
        float base[8], x[8], out[8];
        decode<FLOAT>(work, 0, raw_base, base);
        decode<FLOAT>(work, 1, raw, x);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const float d = sub(x[i], base[i]);
            const float far = absolute(d) <= nearness.t ? x[i] : add(base[i], d > 0.0f ? nearness.t : -nearness.t);
            const float swapped = absolute(d) < nearness.near ? add(base[i], mul(nearness.factor, d)) : far;
            out[i] = add(swapped, mul(0.0f, d));
        }
        finish<FLOAT>(work, tile, out);
    }
}

ENTRIES(nearswap)
