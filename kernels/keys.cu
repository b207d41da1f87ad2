// The keys of all task vectors, element by element: |xᵢ − base| as integers. Run on small parts only.
//
// Of each tile, all of the first model's keys come first, then the second's; a tile that ends early leaves no gaps.
#include "prelude.cuh"

template <unsigned FLOAT>
DEVICE void keys(const Work& work) {
    unsigned* words = reinterpret_cast<unsigned*>(work.out);
    const unsigned models = work.header->inputs - 1;
    for (unsigned tile = work.first; tile < work.end; tile++) {
        const int lanes = work.lanes(tile);
        const unsigned length = work.length(tile);
        float base[8];
        read<FLOAT>(work, 0, tile, base);
        for (unsigned model = 0; model < models; model++) {
            int own[8];
            keys_of<FLOAT>(work, model + 1, load<FLOAT>(work, model + 1, tile), base, lanes, own);
            unsigned* at = words + (size_t)tile * TILE * models + model * length + threadIdx.x * 8;
#pragma unroll
            for (int i = 0; i < 8; i++) {
                if (i < lanes) at[i] = own[i];
            }
        }
    }
}

ENTRIES(keys)
