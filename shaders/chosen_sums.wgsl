// Σ |xᵢ − base|, and the same and the squares of what is kept of it, for every model, tile by tile: the three side by side.
//
// One measuring sweep reads every input once; a dropped term is multiplied by 0. Squares of small numbers would leave the range
// that WebGPU is exact in, so a narrower one holds here.

// Models whose sums are folded together.
const MODELS_AT_ONCE = SUMS_MAX / CHOSEN_SUMS;

@compute @workgroup_size(THREADS)
fn chosen_sums(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let work = work_of(group.x);
    let models = work.inputs - 1u - table[work.job];
    let choices = work.job + 1u;
    for (var tile = work.first; tile < work.end; tile++) {
        let at = work.out * 4u + tile * CHOSEN_SUMS * models;
        let exist = before(lanes_of(work, tile, thread));
        let base = input_of(work, 0u, tile, thread, exist);
        for (var m = 0u; m < models; m++) {
            let place = m % MODELS_AT_ONCE;
            let delta = sub(input_of(work, m + 1u, tile, thread, exist), base);
            let choice = load_Choice(choices + m * CHOICE_WORDS);
            let kept = chosen_or_zero(chosen(work, choice, models, tile, thread, exist, delta), delta);
            look_at(magnitudes_of(kept), PRODUCT_LEAST, PRODUCT_GREATEST);
            groups[CHOSEN_SUMS * place * THREADS + thread] = group_sum(absolute(delta));
            groups[(CHOSEN_SUMS * place + 1u) * THREADS + thread] = group_sum(absolute(kept));
            groups[(CHOSEN_SUMS * place + 2u) * THREADS + thread] = group_sum(mul(kept, kept));
            if (place + 1u == MODELS_AT_ONCE || m + 1u == models) {
                fold(thread, CHOSEN_SUMS * (place + 1u), at + CHOSEN_SUMS * (m - place));
            }
        }
    }
    report_odd(work);
}
