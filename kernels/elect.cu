// The merge of task vectors with any choice of elements and any rule that combines what is kept of one.
//
//   δᵢ  = xᵢ − base
//   vᵢ  = (kept ? cᵢ : 0) · δᵢ
//   out = base + what the rule makes of all vᵢ
//
// Any number of models. The sum of all terms has to be known before any is judged by it: such rules read the models twice,
// the second time from the caches. The output is written once.
#include "choice.cuh"

// What is known of the terms of an element, of eight of them.
struct Terms {
    float delta[8];
    float v[8];
    unsigned kept;
};

// A model's terms.
template <unsigned FLOAT>
DEVICE void terms_of(const Work& work, const Part& part, const Choice& choice, unsigned models, unsigned m, unsigned tile,
                     const float base[8], Terms& terms) {
    float x[8];
    read<FLOAT>(work, m + 1, tile, x);
#pragma unroll
    for (int i = 0; i < 8; i++) terms.delta[i] = sub(x[i], base[i]);
    terms.kept = chosen<FLOAT>(work, choice, models, tile, terms.delta);
#pragma unroll
    for (int i = 0; i < 8; i++) {
        terms.v[i] = mul(terms.kept >> i & 1 ? part.coefficient : 0.0f, terms.delta[i]);
    }
}

// Whether a term has the elected sign. NaN has none.
DEVICE bool agrees(float sum, float v) { return sum >= 0.0f ? v > 0.0f : v < 0.0f; }

// What all terms of an element make, of eight of them: a sum of terms, the largest term, terms that count for nothing, and
// the set of models, or how many there are.
struct Made {
    float sum[8];
    float mixed[8];
    float others[8];
    unsigned holders[8];
};

// One model's say before the sum is known.
DEVICE void add_term(unsigned rule, unsigned m, const Terms& terms, Made& made) {
#pragma unroll
    for (int i = 0; i < 8; i++) {
        made.sum[i] = add(made.sum[i], terms.v[i]);
        if (rule == RULE_KEPT) made.holders[i] |= (terms.kept >> i & 1) << m;
        if (rule == RULE_LARGEST && key_of(terms.v[i]) > key_of(made.mixed[i])) made.mixed[i] = terms.v[i];
    }
}

// The same once it is.
DEVICE void judge_term(unsigned rule, unsigned m, const Part& part, const Terms& terms, Made& made) {
#pragma unroll
    for (int i = 0; i < 8; i++) {
        const float v = terms.v[i];
        const bool agree = agrees(made.sum[i], v);
        if (rule == RULE_SIGNS) {
            made.mixed[i] = add(made.mixed[i], mul(agree ? part.share : 0.0f, v));
            made.holders[i] |= (unsigned)agree << m;
        } else if (rule == RULE_ELECTED) {
            if (agree && key_of(v) > key_of(made.mixed[i])) made.mixed[i] = v;
            made.others[i] = add(made.others[i], agree ? 0.0f : mul(0.0f, v));
        } else {
            const float rest = absolute(sub(made.sum[i], terms.delta[i]));
            const bool holds = absolute(terms.delta[i]) >= mul(part.tolerance, rest);
            made.holders[i] += terms.kept >> i & (unsigned)holds;
        }
    }
}

// What is added to the base.
DEVICE float made_of(const Election& election, const float* scales, const Made& made, int i) {
    switch (election.rule) {
        case RULE_SUM:
            return made.sum[i];
        case RULE_SIGNS:
            return mul(made.mixed[i], scales[made.holders[i]]);
        case RULE_KEPT:
            return mul(made.sum[i], scales[made.holders[i]]);
        case RULE_COMMON:
            return mul(made.sum[i], made.holders[i] >= election.least ? election.scale : 0.0f);
        default:
            return mul(election.scale, add(made.mixed[i], made.others[i]));
    }
}

template <unsigned FLOAT>
DEVICE void elect(const Work& work) {
    const Election& election = *reinterpret_cast<const Election*>(work.job);
    const unsigned rule = election.rule, models = work.header->inputs - 1 - election.selectors;
    const Part* parts = reinterpret_cast<const Part*>(&election + 1);
    const Choice* choices = reinterpret_cast<const Choice*>(parts + models);
    const float* scales = reinterpret_cast<const float*>(choices + models);
    const bool judges = rule == RULE_SIGNS || rule == RULE_ELECTED || rule == RULE_COMMON;
    __shared__ unsigned kept_of_block[VOTERS_MAX];
    if (threadIdx.x < VOTERS_MAX) kept_of_block[threadIdx.x] = 0;
    __syncthreads();
    for (unsigned tile = work.first; tile < work.end; tile++) {
        const unsigned exist = (1u << work.lanes(tile)) - 1;
        float base[8], out[8];
        Terms terms;
        Made made = {};
        read<FLOAT>(work, 0, tile, base);
        for (unsigned m = 0; m < models; m++) {
            terms_of<FLOAT>(work, parts[m], choices[m], models, m, tile, base, terms);
            add_term(rule, m, terms, made);
            if (m < VOTERS_MAX) add_up(kept_of_block + m, __popc(terms.kept & exist));
        }
        for (unsigned m = 0; judges && m < models; m++) {
            terms_of<FLOAT>(work, parts[m], choices[m], models, m, tile, base, terms);
            judge_term(rule, m, parts[m], terms, made);
        }
#pragma unroll
        for (int i = 0; i < 8; i++) out[i] = add(base[i], made_of(election, scales, made, i));
        finish<FLOAT, true>(work, tile, out);
    }
    __syncthreads();
    if (threadIdx.x < min(models, VOTERS_MAX)) {
        atomicAdd(work.tally + TALLY_KEPT + threadIdx.x, kept_of_block[threadIdx.x]);
    }
}

ENTRIES(elect)
