// Σ |xᵢ − base| and the same of what is kept of it, for every model, tile by tile: all, then kept.
//
// One measuring sweep reads every input once; a dropped term is multiplied by 0.

@compute @workgroup_size(THREADS)
fn masked_sums(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let work = work_of(group.x);
    let count = work.inputs - 1u;
    for (var tile = work.first; tile < work.end; tile++) {
        let at = work.out * 4u + tile * 2u * count;
        let exist = before(lanes_of(work, tile, thread));
        let base = input_of(work, 0u, tile, thread, exist);
        // Workgroup memory has room for as many models at a time as a vote may have.
        for (var m = 0u; m < count; m++) {
            let place = m % VOTERS_MAX;
            let x = input_of(work, m + 1u, tile, thread, exist);
            let model = load_Model(work.job + m * MODEL_WORDS);
            let v = weighted_delta(model, work.first_tile + tile, thread, exist, x, base).v;
            groups[2u * place * THREADS + thread] = group_sum(absolute(sub(x, base)));
            groups[(2u * place + 1u) * THREADS + thread] = group_sum(absolute(v));
            if (place + 1u == VOTERS_MAX || m + 1u == count) {
                fold(thread, 2u * place + 2u, at + 2u * (m - place));
            }
        }
    }
    report_odd(work);
}
