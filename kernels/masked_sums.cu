// Σ |xᵢ − base| and the same of what is kept of it, for every model, tile by tile: all, then kept.
//
// One measuring sweep reads every input once; a dropped term is multiplied by 0.
#include "prelude.cuh"

// Whether the fast path may measure a block: whole tiles, and random masks alone.
template <unsigned MODELS>
DEVICE bool is_ordinary(const Work& work, const Model* models) {
    bool ordinary = whole(work) && work.span->first_tile + work.end <= SCHEDULED_TILES;
#pragma unroll
    for (unsigned m = 0; m < MODELS; m++) ordinary &= models[m].keep == KEEP_DROP;
    return ordinary;
}

// A thread's group of what is kept, where draws are undecided or a dropped term may not be left out.
DEVICE_APART float kept_apart(unsigned tile, Model model, Values deltas) {
    float mask[8], terms[8];
    choose(tile, model, mask);
#pragma unroll
    for (int i = 0; i < 8; i++) terms[i] = absolute(mul(mask[i], deltas.of[i]));
    return group_sum(terms);
}

// Measures the tiles of an ordinary block. Dropped terms are left out: 0 times them would be 0, as long as they are finite.
template <unsigned FLOAT, unsigned MODELS>
DEVICE void measure_ordinary(const Work& work, const Model* models, GroupSums& groups) {
    __shared__ Schedule shared[MODELS];
    if (threadIdx.x < MODELS) shared[threadIdx.x] = schedule_of(models[threadIdx.x]);
    __syncthreads();
    // Two fit registers; behind a barrier of the loop they would be read again.
    Schedule schedules[MODELS];
    const unsigned shift = unknown(work, 1u << 16), first_tile = work.span->first_tile;
    unsigned inputs[MODELS + 1], limits[MODELS];
#pragma unroll
    for (unsigned i = 0; i <= MODELS; i++) inputs[i] = work.inputs[i] + place<FLOAT>(work.first);
#pragma unroll
    for (unsigned m = 0; m < MODELS; m++) {
        schedules[m] = shared[m];
        limits[m] = models[m].limit;
    }
    float* sums = reinterpret_cast<float*>(work.out) + work.first * 2 * MODELS;
    for (unsigned tile = work.first; tile < work.end; tile++) {
        Raw raw[MODELS + 1];
#pragma unroll
        for (unsigned i = 0; i <= MODELS; i++) {
            raw[i] = load_from<FLOAT>(work.memory + inputs[i]);
            inputs[i] += step<FLOAT>();
        }
        const unsigned long long product0 = product(PHILOX_MULTIPLIER_0, place<FLOAT_BF16>(first_tile + tile));
        float base[8];
        decode_as<FLOAT>(raw[0], base);
#pragma unroll
        for (unsigned m = 0; m < MODELS; m++) {
            float x[8], terms[8], kept[8];
            Values deltas;
            decode_as<FLOAT>(raw[m + 1], x);
#pragma unroll
            for (int i = 0; i < 8; i++) {
                deltas.of[i] = sub(x[i], base[i]);
                terms[i] = absolute(deltas.of[i]);
            }
            const Schedule& schedule = MODELS > 2 ? shared[m] : schedules[m];
            const bool undecided = choose_scheduled(product0, schedule, limits[m], shift, terms, kept);
            const float of_all = group_sum(terms);
            float of_kept = group_sum(kept);
            if (undecided | !(of_all < __uint_as_float(INFINITY_BITS))) {
                of_kept = kept_apart(first_tile + tile, models[m], deltas);
            }
            groups.of[2 * m][threadIdx.x] = of_all;
            groups.of[2 * m + 1][threadIdx.x] = of_kept;
        }
        fold_known<2 * MODELS>(groups, sums);
        sums += 2 * MODELS;
    }
}

// For a number of models, or any: 0.
template <unsigned FLOAT, unsigned MODELS>
DEVICE void masked_sums(const Work& work) {
    __shared__ GroupSums groups;
    const Model* models = reinterpret_cast<const Model*>(work.job);
    if constexpr (MODELS > 0 && FLOAT != FLOAT_MIXED) {
        if (is_ordinary<MODELS>(work, models)) {
            measure_ordinary<FLOAT, MODELS>(work, models, groups);
            return;
        }
    }
    const unsigned count = work.header->inputs - 1;
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

#define MASKED_SUMS(name, FLOAT)                       \
    ENTRY(masked_sums_1_##name, masked_sums<FLOAT, 1>) \
    ENTRY(masked_sums_2_##name, masked_sums<FLOAT, 2>) \
    ENTRY(masked_sums_3_##name, masked_sums<FLOAT, 3>) \
    ENTRY(masked_sums_4_##name, masked_sums<FLOAT, 4>) \
    ENTRY(masked_sums_##name, masked_sums<FLOAT, 0>)

MASKED_SUMS(float32, FLOAT_F32)
MASKED_SUMS(float16, FLOAT_F16)
MASKED_SUMS(bfloat16, FLOAT_BF16)
MASKED_SUMS(mixed, FLOAT_MIXED)
