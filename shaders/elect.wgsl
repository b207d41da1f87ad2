// The merge of task vectors with any choice of elements and any rule that combines what is kept of one.
//
//   δᵢ  = xᵢ − base
//   vᵢ  = (kept ? cᵢ : 0) · δᵢ
//   out = base + what the rule makes of all vᵢ
//
// Any number of models. The sum of all terms has to be known before any is judged by it: such rules read the models twice,
// the second time from the caches. The output is written once.
//
// Terms and sums are multiplied once more, so those near the ends of the range that WebGPU is exact in are left to the CPU, as
// inputs are.

var<workgroup> kept_of_group: array<atomic<u32>, VOTERS_MAX>;

// What is known of the terms of an element, of eight of them.
struct Terms {
    delta: Eight,
    v: Eight,
    kept: EightChoices,
}

// A model's terms.
fn terms_of(work: Work, part: Part, choice: Choice, models: u32, m: u32, tile: u32, thread: u32, exist: EightChoices,
            base: Eight) -> Terms {
    let delta = sub(input_of(work, m + 1u, tile, thread, exist), base);
    let kept = chosen(work, choice, models, tile, thread, exist, delta);
    let c = vec4<f32>(part.coefficient);
    return Terms(delta, mul(chosen_or_zero(kept, Eight(c, c)), delta), kept);
}

// Whether terms have the elected sign.
fn agrees(sum: Eight, v: Eight) -> EightChoices {
    let none = vec4<f32>(0.0);
    return EightChoices(select((v.low < none), (v.low > none), (sum.low >= none)),
                        select((v.high < none), (v.high > none), (sum.high >= none)));
}

// Which terms are larger than the largest one so far.
fn larger(v: Eight, so_far: Eight) -> EightChoices {
    let own = magnitudes_of(v);
    let others = magnitudes_of(so_far);
    return EightChoices(own.low > others.low, own.high > others.high);
}

// What all terms of an element make, of eight of them: a sum of terms, the largest term, and the set of models, or how many
// there are. What counts for nothing would be added as 0 · v: a zero of either sign, as long as v is finite.
struct Made {
    sum: Eight,
    mixed: Eight,
    holders: EightBits,
}

// With a number for those that are chosen: a bit, or 1.
fn with_number(so_far: EightBits, chosen: EightChoices, number: u32) -> EightBits {
    let nothing = vec4<u32>(0u);
    return EightBits(so_far.low + select(nothing, vec4<u32>(number), chosen.low),
                     so_far.high + select(nothing, vec4<u32>(number), chosen.high));
}

// One model's say before the sum is known.
fn add_term(rule: u32, m: u32, terms: Terms, so_far: Made) -> Made {
    var made = so_far;
    made.sum = add(made.sum, terms.v);
    if (rule == RULE_KEPT) {
        made.holders = with_number(made.holders, terms.kept, 1u << m);
    }
    if (rule == RULE_LARGEST) {
        made.mixed = either(larger(terms.v, made.mixed), terms.v, made.mixed);
    }
    return made;
}

// The same once it is.
fn judge_term(rule: u32, m: u32, part: Part, terms: Terms, so_far: Made) -> Made {
    var made = so_far;
    let agree = agrees(made.sum, terms.v);
    if (rule == RULE_SIGNS) {
        let share = vec4<f32>(part.share);
        made.mixed = add(made.mixed, mul(chosen_or_zero(agree, Eight(share, share)), terms.v));
        made.holders = with_number(made.holders, agree, 1u << m);
    } else if (rule == RULE_ELECTED) {
        made.mixed = either(both(agree, larger(terms.v, made.mixed)), terms.v, made.mixed);
    } else {
        let rest = scale(part.tolerance, absolute(sub(made.sum, terms.delta)));
        let own = absolute(terms.delta);
        let holds = EightChoices(own.low >= rest.low, own.high >= rest.high);
        made.holders = with_number(made.holders, both(terms.kept, holds), 1u);
    }
    return made;
}

fn factor(scales: u32, own: u32) -> f32 { return bitcast<f32>(table[scales + own]); }

fn factors(scales: u32, sets: EightBits) -> Eight {
    return Eight(vec4<f32>(factor(scales, sets.low.x), factor(scales, sets.low.y),
                           factor(scales, sets.low.z), factor(scales, sets.low.w)),
                 vec4<f32>(factor(scales, sets.high.x), factor(scales, sets.high.y),
                           factor(scales, sets.high.z), factor(scales, sets.high.w)));
}

// What is added to the base.
fn made_of(election: Election, scales: u32, made: Made) -> Eight {
    switch (election.rule) {
        case RULE_SUM: { return made.sum; }
        case RULE_SIGNS: { return mul(made.mixed, factors(scales, made.holders)); }
        case RULE_KEPT: { return mul(made.sum, factors(scales, made.holders)); }
        case RULE_COMMON: {
            let least = vec4<u32>(election.least);
            let enough = EightChoices(made.holders.low >= least, made.holders.high >= least);
            return scale(election.scale, chosen_or_zero(enough, made.sum));
        }
        default: { return scale(election.scale, made.mixed); }
    }
}

@compute @workgroup_size(THREADS)
fn elect(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let work = work_of(group.x);
    let election = load_Election(work.job);
    let rule = election.rule;
    let models = work.inputs - 1u - election.selectors;
    let parts = work.job + ELECTION_WORDS;
    let choices = parts + models * PART_WORDS;
    let scales = choices + models * CHOICE_WORDS;
    let judges = rule == RULE_SIGNS || rule == RULE_ELECTED || rule == RULE_COMMON;
    if (thread < VOTERS_MAX) {
        atomicStore(&kept_of_group[thread], 0u);
    }
    workgroupBarrier();
    for (var tile = work.first; tile < work.end; tile++) {
        let exist = before(lanes_of(work, tile, thread));
        let base = input_of(work, 0u, tile, thread, exist);
        var made = Made(zeros(), zeros(), EightBits(vec4<u32>(0u), vec4<u32>(0u)));
        for (var m = 0u; m < models; m++) {
            let part = load_Part(parts + m * PART_WORDS);
            let choice = load_Choice(choices + m * CHOICE_WORDS);
            let terms = terms_of(work, part, choice, models, m, tile, thread, exist, base);
            made = add_term(rule, m, terms, made);
            if (rule != RULE_SUM) {
                look_at(magnitudes_of(terms.v), PLAIN_LEAST, PLAIN_GREATEST);
            }
            if (m < VOTERS_MAX) {
                let together = sum_of_neighbours(number_of(both(terms.kept, exist)));
                if (speaks_for_neighbours(thread) && together > 0u) {
                    atomicAdd(&kept_of_group[m], together);
                }
            }
        }
        if (rule == RULE_KEPT || rule == RULE_COMMON) {
            look_at(magnitudes_of(made.sum), PLAIN_LEAST, PLAIN_GREATEST);
        }
        for (var m = 0u; judges && m < models; m++) {
            let part = load_Part(parts + m * PART_WORDS);
            let choice = load_Choice(choices + m * CHOICE_WORDS);
            let terms = terms_of(work, part, choice, models, m, tile, thread, exist, base);
            made = judge_term(rule, m, part, terms, made);
        }
        finish(work, tile, thread, exist, add(base, made_of(election, scales, made)));
    }
    workgroupBarrier();
    if (thread < min(models, VOTERS_MAX)) {
        atomicAdd(&tally[work.tally + TALLY_KEPT + thread], atomicLoad(&kept_of_group[thread]));
    }
    report_odd(work);
}
