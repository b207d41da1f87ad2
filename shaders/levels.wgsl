// Counts of task-vector magnitudes at a few given keys: at or above each level, and equal to it.
//
// One counting sweep reads every input once. Each invocation counts its own eight keys and subgroups add up, so equal data
// does not queue at one counter.

// The kernel's parameters per model: how many levels, then their keys.
const JOB_WORDS = 1u + LEVELS_MAX;

var<workgroup> counts_of_group: array<atomic<u32>, VOTERS_MAX * LEVELS_WORDS>;

@compute @workgroup_size(THREADS)
fn levels(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let work = work_of(group.x);
    let models = work.inputs - 1u;
    for (var i = thread; i < models * LEVELS_WORDS; i += THREADS) {
        atomicStore(&counts_of_group[i], 0u);
    }
    workgroupBarrier();
    for (var tile = work.first; tile < work.end; tile++) {
        let exist = before(lanes_of(work, tile, thread));
        let base = input_of(work, 0u, tile, thread, exist);
        for (var model = 0u; model < models; model++) {
            let own = keys_of(exist, input_of(work, model + 1u, tile, thread, exist), base);
            let job = work.job + model * JOB_WORDS;
            for (var level = 0u; level < table[job]; level++) {
                let key = vec4<i32>(bitcast<i32>(table[job + 1u + level]));
                let reached = number_of(EightChoices(own.low >= key, own.high >= key));
                let equal = number_of(EightChoices(own.low == key, own.high == key));
                // Both counts of a subgroup are at most 1024: they share a word while they are added up.
                let together = sum_of_neighbours(reached + (equal << 16u));
                if (speaks_for_neighbours(thread) && together > 0u) {
                    let at = model * LEVELS_WORDS + 2u * level;
                    atomicAdd(&counts_of_group[at], together & 0xffffu);
                    atomicAdd(&counts_of_group[at + 1u], together >> 16u);
                }
            }
        }
    }
    workgroupBarrier();
    let totals = work.out * 4u + work.record * models * LEVELS_WORDS;
    for (var i = thread; i < models * LEVELS_WORDS; i += THREADS) {
        let count = atomicLoad(&counts_of_group[i]);
        if (count > 0u) {
            atomicAdd(&counts[totals + i], count);
        }
    }
    report_odd(work);
}
