// out = x₀ + (c₀ x₀ + Σ cᵢ (xᵢ − x₀)), with coefficients for each row or column. Moves every input once and the output once.

// The coefficients of eight segments, which begin at a place in the table.
fn coefficients_of(at: u32, segments: EightBits) -> Eight {
    let low = at + segments.low;
    let high = at + segments.high;
    return of_bits(EightBits(vec4<u32>(table[low.x], table[low.y], table[low.z], table[low.w]),
                             vec4<u32>(table[high.x], table[high.y], table[high.z], table[high.w])));
}

// The segments of four elements. Past the end there may be none any more; those lanes take the last one.
fn segments_of(elements: vec4<u32>, by_columns: bool, columns: vec4<u32>, last: vec4<u32>) -> vec4<u32> {
    return min(select(elements / columns, elements % columns, by_columns), last);
}

@compute @workgroup_size(THREADS)
fn segment_sum(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
    let work = work_of(group.x);
    let by_columns = table[work.job] == BY_COLUMNS;
    let columns = vec4<u32>(table[work.job + 1u]);
    let start = table[work.job + 2u];
    let count = table[work.job + 3u];
    let last = vec4<u32>(count - 1u);
    let coefficients = work.job + 4u;
    for (var tile = work.first; tile < work.end; tile++) {
        let exist = before(lanes_of(work, tile, thread));
        let element = start + tile * TILE + thread * 8u;
        let segments = EightBits(segments_of(element + LOW_LANES, by_columns, columns, last),
                                 segments_of(element + HIGH_LANES, by_columns, columns, last));
        let first = input_of(work, 0u, tile, thread, exist);
        var sum = mul(coefficients_of(coefficients, segments), first);
        for (var input = 1u; input < work.inputs; input++) {
            let x = sub(input_of(work, input, tile, thread, exist), first);
            sum = add(sum, mul(coefficients_of(coefficients + input * count, segments), x));
        }
        finish(work, tile, thread, exist, add(sum, first));
    }
    report_odd(work);
}
