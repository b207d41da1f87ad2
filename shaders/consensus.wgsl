// The fused merge of task vectors: subtract, trim or drop, weight, elect the sign, average, add the base, round.
//
//   vᵢ   = (kept ? cᵢ : 0) · (xᵢ − base)
//   sign = Σ vᵢ ≥ 0 ? + : −
//   out  = base + scale[agreeing] · Σ (vᵢ agrees ? vᵢ : 0 · vᵢ)
//
// One pass: N + 1 inputs are read once and the output is written once, 2(N + 1) + 2 bytes an element in bfloat16.
// MODELS is 1 to 4 where the terms of so many models stay in registers; it is written out, because not every compiler
// unrolls a loop over them. With MODELS 0 any number of models is read twice, the second time from the caches.
//
// How many elements of each trimmed model were kept is counted on the way: the host knows how many there must be.

var<workgroup> kept_of_group: array<atomic<u32>, VOTERS_MAX>;

// Adds to a counter of the workgroup. Every invocation calls it.
fn add_kept(thread: u32, model: u32, kept: u32) {
    let together = sum_of_neighbours(kept);
    if (speaks_for_neighbours(thread) && together > 0u) {
        atomicAdd(&kept_of_group[model], together);
    }
}

struct Vote {
    mixed: Eight,
    agreeing: EightBits,
}

// One model's say: a term with the elected sign is added, and its model noted.
fn vote(so_far: Vote, model: u32, sum: Eight, v: Eight) -> Vote {
    let none = vec4<f32>(0.0);
    let low = select((v.low < none), (v.low > none), (sum.low >= none));
    let high = select((v.high < none), (v.high > none), (sum.high >= none));
    let bit = vec4<u32>(1u << model);
    let agreeing = EightBits(so_far.agreeing.low | select(vec4<u32>(0u), bit, low),
                             so_far.agreeing.high | select(vec4<u32>(0u), bit, high));
    // What is left out would be added as 0 · v: a zero of either sign, as long as v is finite.
    return Vote(add(so_far.mixed, chosen_or_zero(EightChoices(low, high), v)), agreeing);
}

fn factor(scales: u32, agreeing: u32) -> f32 { return bitcast<f32>(table[scales + agreeing]); }

fn factors(scales: u32, sets: EightBits) -> Eight {
    return Eight(vec4<f32>(factor(scales, sets.low.x), factor(scales, sets.low.y),
                           factor(scales, sets.low.z), factor(scales, sets.low.w)),
                 vec4<f32>(factor(scales, sets.high.x), factor(scales, sets.high.y),
                           factor(scales, sets.high.z), factor(scales, sets.high.w)));
}

fn term(work: Work, model: u32, tile: u32, thread: u32, exist: EightChoices, base: Eight) -> Term {
    let x = input_of(work, model + 1u, tile, thread, exist);
    let numbers = load_Model(work.job + 1u + model * MODEL_WORDS);
    return weighted_delta(numbers, work.first_tile + tile, thread, exist, x, base);
}

@compute @workgroup_size(THREADS)
fn consensus(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let work = work_of(group.x);
    let voting = table[work.job] != 0u;
    let models = work.inputs - 1u;
    let scales = work.job + 1u + models * MODEL_WORDS;
    if (thread < VOTERS_MAX) {
        atomicStore(&kept_of_group[thread], 0u);
    }
    workgroupBarrier();
    var kept = vec4<u32>(0u);
    for (var tile = work.first; tile < work.end; tile++) {
        let exist = before(lanes_of(work, tile, thread));
        let base = input_of(work, 0u, tile, thread, exist);
        var sum = zeros();
        var votes = Vote(zeros(), EightBits(vec4<u32>(0u), vec4<u32>(0u)));
        if (MODELS == 0u) {
            for (var model = 0u; model < models; model++) {
                let of_model = term(work, model, tile, thread, exist, base);
                sum = add(sum, of_model.v);
                if (model < VOTERS_MAX) {
                    add_kept(thread, model, of_model.kept);
                }
            }
            for (var model = 0u; voting && model < models; model++) {
                votes = vote(votes, model, sum, term(work, model, tile, thread, exist, base).v);
            }
        } else {
            let v0 = term(work, 0u, tile, thread, exist, base);
            var v1 = Term(zeros(), 0u);
            var v2 = v1;
            var v3 = v1;
            sum = add(sum, v0.v);
            if (MODELS > 1u) {
                v1 = term(work, 1u, tile, thread, exist, base);
                sum = add(sum, v1.v);
            }
            if (MODELS > 2u) {
                v2 = term(work, 2u, tile, thread, exist, base);
                sum = add(sum, v2.v);
            }
            if (MODELS > 3u) {
                v3 = term(work, 3u, tile, thread, exist, base);
                sum = add(sum, v3.v);
            }
            kept += vec4<u32>(v0.kept, v1.kept, v2.kept, v3.kept);
            if (voting) {
                votes = vote(votes, 0u, sum, v0.v);
                if (MODELS > 1u) {
                    votes = vote(votes, 1u, sum, v1.v);
                }
                if (MODELS > 2u) {
                    votes = vote(votes, 2u, sum, v2.v);
                }
                if (MODELS > 3u) {
                    votes = vote(votes, 3u, sum, v3.v);
                }
            }
        }
        if (voting) {
            sum = mul(votes.mixed, factors(scales, votes.agreeing));
        }
        finish(work, tile, thread, exist, add(base, sum));
    }
    if (MODELS > 0u) {
        add_kept(thread, 0u, kept.x);
        add_kept(thread, 1u, kept.y);
        add_kept(thread, 2u, kept.z);
        add_kept(thread, 3u, kept.w);
    }
    workgroupBarrier();
    if (thread < min(models, VOTERS_MAX)) {
        atomicAdd(&tally[work.tally + TALLY_KEPT + thread], atomicLoad(&kept_of_group[thread]));
    }
    report_odd(work);
}
