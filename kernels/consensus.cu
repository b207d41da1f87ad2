// The fused merge of task vectors: subtract, trim or drop, weight, elect the sign, average, add the base, round.
//
//   vᵢ   = (kept ? cᵢ : 0) · (xᵢ − base)
//   sign = Σ vᵢ ≥ 0 ? + : −
//   out  = base + scale[agreeing] · Σ (vᵢ agrees ? vᵢ : 0 · vᵢ)
//
// One pass: N + 1 inputs are read once and the output is written once, 2(N + 1) + 2 bytes an element in bfloat16.
// Up to four models stay in registers, all their loads in flight together. More models are read twice, the second time
// from the caches, because an array of registers cannot be indexed by a number that is not known beforehand.
//
// How many elements of each trimmed model were kept is counted on the way: the host knows how many there must be.
#include "prelude.cuh"

// Whether a term has the elected sign. NaN has none.
DEVICE bool agrees(float sum, float v) { return sum >= 0.0f ? v > 0.0f : v < 0.0f; }

// Adds a block's counts to those of its span.
DEVICE void add_kept(const Work& work, const unsigned* of_block, unsigned models) {
    __syncthreads();
    if (threadIdx.x < models) atomicAdd(work.tally + TALLY_KEPT + threadIdx.x, of_block[threadIdx.x]);
}

template <unsigned FLOAT, unsigned MODELS>
DEVICE void consensus(const Work& work) {
    const bool voting = work.job[0] != 0;
    const Model* models = reinterpret_cast<const Model*>(work.job + 1);
    const float* scale = reinterpret_cast<const float*>(models + MODELS);
    __shared__ float factors[1 << MODELS];
    __shared__ unsigned kept_of_block[MODELS];
    if (voting && threadIdx.x < 1 << MODELS) factors[threadIdx.x] = scale[threadIdx.x];
    if (threadIdx.x < MODELS) kept_of_block[threadIdx.x] = 0;
    __syncthreads();
    // A byte per model, which saves registers: a block has too few tiles for more than 255 of a thread's elements.
    unsigned kept = 0;
    for (unsigned tile = work.first; tile < work.end; tile++) {
        Raw raw[MODELS + 1];
#pragma unroll
        for (unsigned input = 0; input <= MODELS; input++) raw[input] = load<FLOAT>(work, input, tile);
        const int lanes = work.lanes(tile);
        float base[8], v[MODELS][8], out[8];
        float sum[8] = {};
        decode<FLOAT>(work, 0, raw[0], base);
#pragma unroll
        for (unsigned m = 0; m < MODELS; m++) {
            float x[8];
            decode<FLOAT>(work, m + 1, raw[m + 1], x);
            kept += weighted_delta(models[m], work.span->first_tile + tile, lanes, x, base, v[m]) << 8 * m;
#pragma unroll
            for (int i = 0; i < 8; i++) sum[i] = add(sum[i], v[m][i]);
        }
        if (!voting) {
#pragma unroll
            for (int i = 0; i < 8; i++) out[i] = add(base[i], sum[i]);
        } else {
#pragma unroll
            for (int i = 0; i < 8; i++) {
                float mixed = 0.0f;
                unsigned agreeing = 0;
#pragma unroll
                for (unsigned m = 0; m < MODELS; m++) {
                    const bool agree = agrees(sum[i], v[m][i]);
                    mixed = add(mixed, agree ? v[m][i] : mul(0.0f, v[m][i]));
                    agreeing |= (unsigned)agree << m;
                }
                out[i] = add(base[i], mul(mixed, factors[agreeing]));
            }
        }
        finish<FLOAT>(work, tile, out);
    }
#pragma unroll
    for (unsigned m = 0; m < MODELS; m++) add_up(kept_of_block + m, kept >> 8 * m & 0xffu);
    add_kept(work, kept_of_block, MODELS);
}

// Any number of models: terms are made anew for the vote.
template <unsigned FLOAT>
DEVICE void consensus_many(const Work& work) {
    const bool voting = work.job[0] != 0;
    const unsigned count = work.header->inputs - 1;
    const Model* models = reinterpret_cast<const Model*>(work.job + 1);
    const float* scale = reinterpret_cast<const float*>(models + count);
    __shared__ unsigned kept_of_block[VOTERS_MAX];
    if (threadIdx.x < VOTERS_MAX) kept_of_block[threadIdx.x] = 0;
    __syncthreads();
    for (unsigned tile = work.first; tile < work.end; tile++) {
        const unsigned tile_of_tensor = work.span->first_tile + tile;
        const int lanes = work.lanes(tile);
        float base[8], x[8], v[8];
        float sum[8] = {}, mixed[8] = {};
        unsigned agreeing[8] = {};
        read<FLOAT>(work, 0, tile, base);
        for (unsigned m = 0; m < count; m++) {
            read<FLOAT>(work, m + 1, tile, x);
            const unsigned kept = weighted_delta(models[m], tile_of_tensor, lanes, x, base, v);
            if (m < VOTERS_MAX) add_up(kept_of_block + m, kept);
#pragma unroll
            for (int i = 0; i < 8; i++) sum[i] = add(sum[i], v[i]);
        }
        for (unsigned m = 0; voting && m < count; m++) {
            read<FLOAT>(work, m + 1, tile, x);
            weighted_delta(models[m], tile_of_tensor, lanes, x, base, v);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const bool agree = agrees(sum[i], v[i]);
                mixed[i] = add(mixed[i], agree ? v[i] : mul(0.0f, v[i]));
                agreeing[i] |= (unsigned)agree << m;
            }
        }
        float out[8];
#pragma unroll
        for (int i = 0; i < 8; i++) {
            out[i] = add(base[i], voting ? mul(mixed[i], scale[agreeing[i]]) : sum[i]);
        }
        finish<FLOAT>(work, tile, out);
    }
    add_kept(work, kept_of_block, min(count, VOTERS_MAX));
}

#define CONSENSUS(name, FLOAT)                                                                            \
    ENTRY(consensus_1_##name, consensus<FLOAT, 1>)                                                        \
    ENTRY(consensus_2_##name, consensus<FLOAT, 2>)                                                        \
    ENTRY(consensus_3_##name, consensus<FLOAT, 3>)                                                        \
    ENTRY(consensus_4_##name, consensus<FLOAT, 4>)                                                        \
    ENTRY(consensus_##name, consensus_many<FLOAT>)

CONSENSUS(float32, FLOAT_F32)
CONSENSUS(float16, FLOAT_F16)
CONSENSUS(bfloat16, FLOAT_BF16)
CONSENSUS(mixed, FLOAT_MIXED)
