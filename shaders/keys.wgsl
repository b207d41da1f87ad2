// The keys of all task vectors, element by element: |xᵢ − base| as integers. Run on small parts only.
//
// Of each tile, all of the first model's keys come first, then the second's; a tile that ends early leaves no gaps.

@compute @workgroup_size(THREADS)
fn keys(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let work = work_of(group.x);
    let models = work.inputs - 1u;
    for (var tile = work.first; tile < work.end; tile++) {
        let lanes = lanes_of(work, tile, thread);
        let exist = before(lanes);
        let length = min(work.elements - tile * TILE, TILE);
        let base = input_of(work, 0u, tile, thread, exist);
        for (var model = 0u; model < models; model++) {
            let own = keys_of(exist, input_of(work, model + 1u, tile, thread, exist), base);
            let at = work.out * 4u + tile * TILE * models + model * length + thread * 8u;
            for (var i = 0u; i < lanes; i++) {
                words[at + i] = u32(select(own.high[i & 3u], own.low[i & 3u], i < 4u));
            }
        }
    }
    report_odd(work);
}
