// All pairwise inner products of (x₀, x₁ − x₀, x₂ − x₀, …), tile by tile: the upper triangle row by row.
//
// Products of small numbers would leave the range that WebGPU is exact in, so a narrower one holds here.

// Vector `input` of the basis; 0 past the end.
fn basis(work: Work, input: u32, tile: u32, thread: u32, exist: EightChoices, anchor: Eight) -> Eight {
    var x = input_of(work, input, tile, thread, exist);
    if (input > 0u) {
        x = sub(x, anchor);
    }
    look_at(magnitudes_of(x), PRODUCT_LEAST, PRODUCT_GREATEST);
    return x;
}

@compute @workgroup_size(THREADS)
fn gram(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let work = work_of(group.x);
    let pairs = work.inputs * (work.inputs + 1u) / 2u;
    for (var tile = work.first; tile < work.end; tile++) {
        var at = work.out * 4u + tile * pairs;
        let exist = before(lanes_of(work, tile, thread));
        let anchor = input_of(work, 0u, tile, thread, exist);
        var waiting = 0u;
        for (var i = 0u; i < work.inputs; i++) {
            let a = basis(work, i, tile, thread, exist, anchor);
            for (var j = i; j < work.inputs; j++) {
                let b = basis(work, j, tile, thread, exist, anchor);
                groups[waiting * THREADS + thread] = group_sum(mul(a, b));
                waiting++;
                if (waiting == SUMS_MAX || i == work.inputs - 1u) {
                    fold(thread, waiting, at);
                    at += waiting;
                    waiting = 0u;
                }
            }
        }
    }
    report_odd(work);
}
