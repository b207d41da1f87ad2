// How many elements each model holds, and how many it alone holds: those whose magnitude is above its threshold.
//
// One counting sweep reads every input once. An invocation finds the holders of its eight elements before it counts any, and
// subgroups add up, so equal data does not queue at one counter.

var<workgroup> counts_of_group: array<atomic<u32>, VOTERS_MAX * HOLDERS_WORDS>;

@compute @workgroup_size(THREADS)
fn holders(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let work = work_of(group.x);
    let models = work.inputs - 1u;
    if (thread < models * HOLDERS_WORDS) {
        atomicStore(&counts_of_group[thread], 0u);
    }
    workgroupBarrier();
    for (var tile = work.first; tile < work.end; tile++) {
        let exist = before(lanes_of(work, tile, thread));
        let base = input_of(work, 0u, tile, thread, exist);
        // Of each element, a bit for each model that holds it.
        var held_by = EightBits(vec4<u32>(0u), vec4<u32>(0u));
        for (var m = 0u; m < models; m++) {
            let own = keys_of(exist, input_of(work, m + 1u, tile, thread, exist), base);
            let threshold = vec4<i32>(bitcast<i32>(table[work.job + m]));
            let bit = vec4<u32>(1u << m);
            held_by.low |= select(vec4<u32>(0u), bit, own.low > threshold);
            held_by.high |= select(vec4<u32>(0u), bit, own.high > threshold);
        }
        for (var m = 0u; m < models; m++) {
            let bit = vec4<u32>(1u << m);
            let nothing = vec4<u32>(0u);
            let held = number_of(EightChoices((held_by.low & bit) != nothing, (held_by.high & bit) != nothing));
            let alone = number_of(EightChoices(held_by.low == bit, held_by.high == bit));
            // Both counts of a subgroup are at most 1024: they share a word while they are added up.
            let together = sum_of_neighbours(held + (alone << 16u));
            if (speaks_for_neighbours(thread) && together > 0u) {
                atomicAdd(&counts_of_group[m * HOLDERS_WORDS], together & 0xffffu);
                atomicAdd(&counts_of_group[m * HOLDERS_WORDS + 1u], together >> 16u);
            }
        }
    }
    workgroupBarrier();
    let totals = work.out * 4u + work.record * models * HOLDERS_WORDS;
    if (thread < models * HOLDERS_WORDS) {
        let count = atomicLoad(&counts_of_group[thread]);
        if (count > 0u) {
            atomicAdd(&counts[totals + thread], count);
        }
    }
    report_odd(work);
}
