// What kernels are measured against: as many tensors are read and as many written, with next to no arithmetic.
//
// MODELS is 1 where an output is written, and 0 where the inputs are only read.

@compute @workgroup_size(THREADS)
fn stream(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let work = work_of(group.x);
    for (var tile = work.first; tile < work.end; tile++) {
        var mixed = vec4<u32>(0u);
        for (var input = 0u; input < work.inputs; input++) {
            mixed ^= load(work, input, tile, thread).low;
        }
        // Nothing says that the inputs never come to this, so they must be read.
        if (MODELS == 1u || all(mixed == vec4<u32>(0x9e3779b9u))) {
            values[work.out + tile * (TILE / 8u) + thread] = mixed;
        }
    }
}
