// All pairwise inner products of (x₀, x₁ − x₀, x₂ − x₀, …), tile by tile: the upper triangle row by row.
//
// Two inputs, as slerp has them, are read once; with more, the second vector of a pair comes from the caches.
#include "prelude.cuh"

// Vector `input` of the basis; 0 past the end.
template <unsigned FLOAT>
DEVICE void basis(const Work& work, unsigned input, unsigned tile, int lanes, const float anchor[8], float x[8]) {
    read<FLOAT>(work, input, tile, x);
#pragma unroll
    for (int i = 0; i < 8; i++) x[i] = i >= lanes ? 0.0f : input == 0 ? x[i] : sub(x[i], anchor[i]);
}

DEVICE float inner_product(const float a[8], const float b[8]) {
    float terms[8];
#pragma unroll
    for (int i = 0; i < 8; i++) terms[i] = mul(a[i], b[i]);
    return group_sum(terms);
}

template <unsigned FLOAT>
DEVICE void gram(const Work& work) {
    __shared__ GroupSums groups;
    const unsigned inputs = work.header->inputs;
    const unsigned pairs = inputs * (inputs + 1) / 2;
    for (unsigned tile = work.first; tile < work.end; tile++) {
        float* sums = reinterpret_cast<float*>(work.out) + tile * pairs;
        const int lanes = work.lanes(tile);
        float anchor[8], a[8], b[8];
        read<FLOAT>(work, 0, tile, anchor);
        if (inputs == 2) {
            basis<FLOAT>(work, 1, tile, lanes, anchor, b);
#pragma unroll
            for (int i = 0; i < 8; i++) a[i] = i < lanes ? anchor[i] : 0.0f;
            groups.of[0][threadIdx.x] = inner_product(a, a);
            groups.of[1][threadIdx.x] = inner_product(a, b);
            groups.of[2][threadIdx.x] = inner_product(b, b);
            fold(groups, 3, sums);
            continue;
        }
        unsigned waiting = 0;
        for (unsigned i = 0; i < inputs; i++) {
            basis<FLOAT>(work, i, tile, lanes, anchor, a);
            for (unsigned j = i; j < inputs; j++) {
                basis<FLOAT>(work, j, tile, lanes, anchor, b);
                groups.of[waiting++][threadIdx.x] = inner_product(a, b);
                if (waiting == SUMS_MAX || (i == inputs - 1)) {
                    fold(groups, waiting, sums);
                    sums += waiting;
                    waiting = 0;
                }
            }
        }
    }
}

ENTRIES(gram)
