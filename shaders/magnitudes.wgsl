// Counts of task-vector magnitudes around the k-th largest: bins of a bracket, keys above it, keys with low bits.
//
// One counting sweep. As many models' counters lie in workgroup memory as the device has room for, MODELS of them; the
// grid's second dimension walks over more. Where a subgroup's keys are all in one bin, they are added at once.

var<workgroup> counts_of_group: array<atomic<u32>, MODELS * MAGNITUDES_WORDS>;

// Adds one to a bin for every invocation that has one; −1 is none. Every invocation calls it.
fn count_bin(thread: u32, counters: u32, bin: i32) {
    let most = bin_of_neighbours(bin);
    let together = sum_of_neighbours(select(0u, 1u, bin == most && bin >= 0));
    if (speaks_for_neighbours(thread) && together > 0u) {
        atomicAdd(&counts_of_group[counters + u32(most)], together);
    }
    if (bin != most && bin >= 0) {
        atomicAdd(&counts_of_group[counters + u32(bin)], 1u);
    }
}

@compute @workgroup_size(THREADS)
fn magnitudes(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let work = work_of(group.x);
    let first_model = group.y * MODELS;
    let models = min(work.inputs - 1u - first_model, MODELS);
    for (var i = thread; i < MODELS * MAGNITUDES_WORDS; i += THREADS) {
        atomicStore(&counts_of_group[i], 0u);
    }
    workgroupBarrier();
    for (var tile = work.first; tile < work.end; tile++) {
        let exist = before(lanes_of(work, tile, thread));
        let base = input_of(work, 0u, tile, thread, exist);
        for (var m = 0u; m < models; m++) {
            let own = keys_of(exist, input_of(work, first_model + m + 1u, tile, thread, exist), base);
            let bracket = load_Bracket(work.job + (first_model + m) * BRACKET_WORDS);
            let counters = m * MAGNITUDES_WORDS;
            let lowest = vec4<i32>(bitcast<i32>(bracket.lowest));
            let shift = vec4<u32>(bracket.shift);
            let low_bits = vec4<i32>((1i << bracket.shift) - 1i);
            let reached = EightChoices(own.low >= lowest, own.high >= lowest);
            let low_bins = bitcast<vec4<u32>>(own.low - lowest) >> shift;
            let high_bins = bitcast<vec4<u32>>(own.high - lowest) >> shift;
            let inside = both(reached, EightChoices(low_bins < vec4<u32>(BINS), high_bins < vec4<u32>(BINS)));
            let low_set = EightChoices((own.low & low_bits) != vec4<i32>(0), (own.high & low_bits) != vec4<i32>(0));
            let uneven = number_of(both(inside, low_set));
            let above = number_of(reached) - number_of(inside);
            let low = select(vec4<i32>(-1), bitcast<vec4<i32>>(low_bins), inside.low);
            let high = select(vec4<i32>(-1), bitcast<vec4<i32>>(high_bins), inside.high);
            count_bin(thread, counters, low.x);
            count_bin(thread, counters, low.y);
            count_bin(thread, counters, low.z);
            count_bin(thread, counters, low.w);
            count_bin(thread, counters, high.x);
            count_bin(thread, counters, high.y);
            count_bin(thread, counters, high.z);
            count_bin(thread, counters, high.w);
            let together = sum_of_neighbours(above | (uneven << 16u));
            if (speaks_for_neighbours(thread) && together > 0u) {
                atomicAdd(&counts_of_group[counters + ABOVE], together & 0xffffu);
                atomicAdd(&counts_of_group[counters + UNEVEN], together >> 16u);
            }
        }
    }
    workgroupBarrier();
    let totals = work.out * 4u + (work.record * (work.inputs - 1u) + first_model) * MAGNITUDES_WORDS;
    for (var i = thread; i < models * MAGNITUDES_WORDS; i += THREADS) {
        let count = atomicLoad(&counts_of_group[i]);
        if (count > 0u) {
            atomicAdd(&counts[totals + i], count);
        }
    }
    report_odd(work);
}
