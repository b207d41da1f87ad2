// What the kernels share that choose elements by more than magnitudes from above: a band of them, or the magnitudes of another
// tensor.
#pragma once
#include "prelude.cuh"

// The smallest key that a trim keeps of an element. Of the keys equal to the threshold, those before the cut are kept.
DEVICE int smallest_kept(unsigned threshold, unsigned cut_tile, unsigned cut_lane, unsigned tile, unsigned lane) {
    const bool before = tile < cut_tile || (tile == cut_tile && lane < cut_lane);
    return (int)threshold + (before ? 0 : 1);
}

// Which of this thread's elements of a tile are kept: a bit for each. The number of the tile is that of the tensor.
DEVICE unsigned chosen_by(const Choice& choice, unsigned tile, const float deciding[8]) {
    unsigned kept = 0;
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const unsigned lane = threadIdx.x * 8 + i;
        const int key = key_of(deciding[i]);
        const bool above = key >= smallest_kept(choice.kept, choice.kept_tile, choice.kept_lane, tile, lane);
        const bool beyond = key >= smallest_kept(choice.dropped, choice.dropped_tile, choice.dropped_lane, tile, lane);
        kept |= (unsigned)(above && !beyond) << i;
    }
    return kept;
}

// The same of a model's differences, or of the selector that decides: those stand behind the models among the inputs.
template <unsigned FLOAT>
DEVICE unsigned chosen(const Work& work, const Choice& choice, unsigned models, unsigned tile, const float delta[8]) {
    float deciding[8];
    if (choice.selector != OWN_MAGNITUDE) {
        read<FLOAT>(work, 1 + models + choice.selector, tile, deciding);
    } else {
#pragma unroll
        for (int i = 0; i < 8; i++) deciding[i] = delta[i];
    }
    return chosen_by(choice, work.span->first_tile + tile, deciding);
}
