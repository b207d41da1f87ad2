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
//
// Blocks that vote in whole tiles of 16-bit numbers, with models of one kind, take a fast path (`merge_ordinary`). Of float32,
// memory has so many more bytes to move that the general way has the time.
#include "prelude.cuh"

// Whether a term has the elected sign. NaN has none.
DEVICE bool agrees(float sum, float v) { return sum >= 0.0f ? v > 0.0f : v < 0.0f; }

// Adds a block's counts to those of its span.
DEVICE void add_kept(const Work& work, const unsigned* of_block, unsigned models) {
    __syncthreads();
    if (threadIdx.x < models) atomicAdd(work.tally + TALLY_KEPT + threadIdx.x, of_block[threadIdx.x]);
}

// What 1.0 is multiplied with so that the product has 4 · 2^m above its lower 32 bits: the place of a model's bit among the
// factors, in bytes. What is left below does not add up to a carry.
__host__ __device__ constexpr unsigned place_of_bit(unsigned m) { return (2048u << m) / 127 + 1; }

__host__ __device__ constexpr bool places_are_right() {
    for (unsigned set = 0; set < 16; set++) {
        unsigned long long sum = 0;
        for (unsigned m = 0; m < 4; m++) sum += (set >> m & 1) * 0x3f800000ull * place_of_bit(m);
        if (sum >> 32 != 4 * set) return false;
    }
    return true;
}
static_assert(places_are_right(), "the places of the factors");

// The smallest key that is kept from the beginning of a tile to the next cut.
DEVICE unsigned smallest_key(const Model& model, unsigned tile) { return model.limit + (tile < model.first ? 0 : 1); }

// Whether the fast path may merge a block: whole tiles, models of one kind, and no cut among equal magnitudes inside of it.
template <unsigned MODELS>
DEVICE bool is_ordinary(const Work& work, const Model* models) {
    const bool drops = models[0].keep == KEEP_DROP;
    const unsigned begin = work.span->first_tile + work.first, end = work.span->first_tile + work.end;
    bool ordinary = whole(work) && (!drops || end <= SCHEDULED_TILES);
#pragma unroll
    for (unsigned m = 0; m < MODELS; m++) {
        const Model& model = models[m];
        ordinary &= (model.keep == KEEP_DROP) == drops;
        if (drops) continue;
        const bool starts_with_cut = model.first == begin && model.second == 0;
        ordinary &= model.first < begin || model.first >= end || starts_with_cut;
        // The key of NaN is above all floats.
        ordinary &= smallest_key(model, begin) <= INFINITY_BITS;
    }
    return ordinary;
}

// `choose`, where it is asked once in hundreds of times.
DEVICE_APART Values choose_apart(unsigned tile, Model model) {
    Values mask;
    choose(tile, model, mask.of);
    return mask;
}

// Merges the tiles of an ordinary block. False: a result is not ordinary, and all have to be merged again. The counts of what
// was kept are exact, since a block has few tiles.
//
// Bits are those of the general way: signs of zeros differ in between, and no stored zero has one. Where an input is not
// finite, its result is neither, since no term is left out: those that are dropped or disagree are multiplied by 0.
template <unsigned FLOAT, unsigned MODELS, bool DROPS>
DEVICE bool merge_ordinary(const Work& work, const Model* models, const float* factors,
                           const Schedule* schedules, float kept[MODELS]) {
    const unsigned output = work.header->output, first_tile = work.span->first_tile;
    const unsigned infinity = unknown(work, INFINITY_BITS), shift = unknown(work, 1u << 16);
    const unsigned output_step = output == FLOAT_F32 ? step<FLOAT_F32>() : step<FLOAT_BF16>();
    // Places in vectors are numbers of 32 bits, which are cheaper to go on than pointers.
    unsigned out_at = work.span->results;
    out_at += output == FLOAT_F32 ? place<FLOAT_F32>(work.first) : place<FLOAT_BF16>(work.first);
    unsigned inputs[MODELS + 1], limits[MODELS];
    float coefficients[MODELS], least[MODELS];
#pragma unroll
    for (unsigned i = 0; i <= MODELS; i++) inputs[i] = work.inputs[i] + place<FLOAT>(work.first);
#pragma unroll
    for (unsigned m = 0; m < MODELS; m++) {
        coefficients[m] = models[m].coefficient;
        limits[m] = models[m].limit;
        least[m] = __uint_as_float(smallest_key(models[m], first_tile + work.first));
        kept[m] = 0.0f;
    }
    float magnitudes = 0.0f;
    for (unsigned tile = work.first; tile < work.end; tile++) {
        if (MODELS > 2) keep_in_shared_memory();
        Raw raw[MODELS + 1];
#pragma unroll
        for (unsigned i = 0; i <= MODELS; i++) {
            raw[i] = load_from<FLOAT>(work.memory + inputs[i]);
            inputs[i] += step<FLOAT>();
        }
        float base[8], v[MODELS][8], sum[8], out[8];
        if (DROPS) {
            const unsigned number = place<FLOAT_BF16>(first_tile + tile);
            const unsigned long long product0 = product(PHILOX_MULTIPLIER_0, number);
            bool undecided = false;
#pragma unroll
            for (unsigned m = 0; m < MODELS; m++) {
                const float c = coefficients[m], weights[8] = {c, c, c, c, c, c, c, c};
                undecided |= choose_scheduled(product0, schedules[m], limits[m], shift, weights, v[m]);
            }
            if (undecided) {
#pragma unroll
                for (unsigned m = 0; m < MODELS; m++) {
                    const Values mask = choose_apart(first_tile + tile, models[m]);
#pragma unroll
                    for (int i = 0; i < 8; i++) v[m][i] = mask.of[i];
                }
            }
        }
        decode_as<FLOAT>(raw[0], base);
#pragma unroll
        for (unsigned m = 0; m < MODELS; m++) {
            float x[8];
            decode_as<FLOAT>(raw[m + 1], x);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const float delta = sub(x[i], base[i]);
                if (!DROPS) {
                    const float keep = at_least(absolute(delta), least[m]);
                    kept[m] = add(kept[m], keep);
                    v[m][i] = mul(keep, coefficients[m]);
                }
                v[m][i] = mul(v[m][i], delta);
                sum[i] = m == 0 ? v[0][i] : add(sum[i], v[m][i]);
            }
        }
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const float elected = __uint_as_float((__float_as_uint(sum[i]) & 0x80000000u) | infinity);
            float mixed = 0.0f;
            unsigned long long agreeing = 0;
#pragma unroll
            for (unsigned m = 0; m < MODELS; m++) {
                // Infinity times a positive number is clamped to 1, a negative one and 0 give 0.
                const float agree = mul_clamped(v[m][i], elected), term = mul(agree, v[m][i]);
                mixed = m == 0 ? term : add(mixed, term);
                agreeing += product(__float_as_uint(agree), place_of_bit(m));
            }
            const char* factor = reinterpret_cast<const char*>(factors) + upper(agreeing);
            out[i] = add(base[i], mul(mixed, *reinterpret_cast<const float*>(factor)));
            magnitudes = add(magnitudes, absolute(out[i]));
        }
        store_ordinary(output, work.results + out_at, out);
        out_at += output_step;
    }
    return magnitudes <= ordinary_max(output);
}

template <unsigned FLOAT, unsigned MODELS>
DEVICE void consensus(const Work& work) {
    const bool voting = work.job[0] != 0;
    const Model* models = reinterpret_cast<const Model*>(work.job + 1);
    const float* scale = reinterpret_cast<const float*>(models + MODELS);
    __shared__ float factors[1 << MODELS];
    __shared__ unsigned kept_of_block[MODELS];
    __shared__ Schedule schedules[MODELS];
    if (voting && threadIdx.x < 1 << MODELS) factors[threadIdx.x] = scale[threadIdx.x];
    if (threadIdx.x < MODELS) {
        kept_of_block[threadIdx.x] = 0;
        schedules[threadIdx.x] = schedule_of(models[threadIdx.x]);
    }
    __syncthreads();
    if ((FLOAT == FLOAT_F16 || FLOAT == FLOAT_BF16) && voting && is_ordinary<MODELS>(work, models)) {
        float kept[MODELS];
        const bool drops = models[0].keep == KEEP_DROP;
        const bool done = drops ? merge_ordinary<FLOAT, MODELS, true>(work, models, factors, schedules, kept)
                                : merge_ordinary<FLOAT, MODELS, false>(work, models, factors, schedules, kept);
        if (!__syncthreads_or(!done)) {
#pragma unroll
            for (unsigned m = 0; m < MODELS; m++) add_up(kept_of_block + m, (unsigned)kept[m]);
            add_kept(work, kept_of_block, MODELS);
            return;
        }
    }
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
