// A model drawn to the base where they are near each other, and kept by the base where they are not. With d = x − base:
//
//   |d| < near   out = base + factor · d
//   |d| ≤ t      out = x
//   else         out = base ± t, with the sign of d
//
// Moves both inputs and the output once.

@compute @workgroup_size(THREADS)
fn nearswap(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let work = work_of(group.x);
    let nearness = load_Nearness(work.job);
    // Compared as integers: thresholds may be smaller than what a device works on.
    let t = vec4<u32>(bitcast<u32>(nearness.t));
    let near = vec4<u32>(bitcast<u32>(nearness.near));
    let sign = vec4<u32>(0x80000000u);
    for (var tile = work.first; tile < work.end; tile++) {
        let exist = before(lanes_of(work, tile, thread));
        let base = input_of(work, 0u, tile, thread, exist);
        let x = input_of(work, 1u, tile, thread, exist);
        let d = sub(x, base);
        let distances = magnitudes_of(d);
        let signs = bits_of(d);
        let step = of_bits(EightBits(t | (signs.low & sign), t | (signs.high & sign)));
        let far = either(EightChoices(distances.low <= t, distances.high <= t), x, add(base, step));
        let nearest = add(base, scale(nearness.factor, d));
        let swapped = either(EightChoices(distances.low < near, distances.high < near), nearest, far);
        finish(work, tile, thread, exist, swapped);
    }
    report_odd(work);
}
