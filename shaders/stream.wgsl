// What kernels are measured against: inputs are read and an output is written, with next to no arithmetic.
//
// MODELS is 1 where an output is written, and 0 where the inputs are only read.

@compute @workgroup_size(THREADS)
fn stream(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let work = work_of(group.x);
    let touched = table[work.job];
    for (var tile = work.first; tile < work.end; tile++) {
        var mixed = vec4<u32>(0u);
        for (var input = 0u; input < touched; input++) {
            let raw = load(work, input, tile, thread);
            mixed ^= raw.low;
            if (float_of(work, input) == FLOAT_F32) {
                mixed ^= raw.high;
            }
        }
        // Nothing says that the inputs never come to this, so they must be read.
        if (MODELS == 1u || all(mixed == vec4<u32>(0x9e3779b9u))) {
            values[work.out + tile * (TILE / 8u) + thread] = mixed;
        }
    }
}
