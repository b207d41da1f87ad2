// out = Σ cᵢ xᵢ, or around an anchor out = x₀ + Σ cᵢ (xᵢ − x₀). Moves every input once and the output once.

@compute @workgroup_size(THREADS)
fn weighted_sum(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let work = work_of(group.x);
    let anchored = table[work.job] != 0u;
    let coefficients = work.job + 1u;
    for (var tile = work.first; tile < work.end; tile++) {
        let exist = before(lanes_of(work, tile, thread));
        let first = input_of(work, 0u, tile, thread, exist);
        var sum = zeros();
        if (!anchored) {
            sum = scale(bitcast<f32>(table[coefficients]), first);
        }
        for (var input = 1u; input < work.inputs; input++) {
            var x = input_of(work, input, tile, thread, exist);
            if (anchored) {
                x = sub(x, first);
            }
            sum = add(sum, scale(bitcast<f32>(table[coefficients + input]), x));
        }
        if (anchored) {
            sum = add(sum, first);
        }
        finish(work, tile, thread, exist, sum);
    }
    report_odd(work);
}
