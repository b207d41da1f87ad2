// The yardstick of benches: reads every input once and writes one output, with next to no arithmetic.
//
// It has the bytes of a merge of 2-byte elements and the memory accesses of the kernels beside it, so a kernel's
// time over this one's says what its arithmetic costs.
#include "prelude.cuh"

// The xor of all inputs at this thread's place, batch by batch so that enough loads are in flight.
DEVICE uint4 mixed_inputs(const Work& work, unsigned tile) {
    constexpr unsigned BATCH = 4;
    uint4 mixed = make_uint4(0, 0, 0, 0);
    for (unsigned input = 0; input < work.header->inputs; input += BATCH) {
        uint4 raw[BATCH] = {};
#pragma unroll
        for (unsigned i = 0; i < BATCH; i++) {
            if (input + i < work.header->inputs) raw[i] = load<FLOAT_BF16>(work, input + i, tile).low;
        }
#pragma unroll
        for (unsigned i = 0; i < BATCH; i++) {
            mixed = make_uint4(mixed.x ^ raw[i].x, mixed.y ^ raw[i].y, mixed.z ^ raw[i].z, mixed.w ^ raw[i].w);
        }
    }
    return mixed;
}

DEVICE void stream(const Work& work) {
    for (unsigned tile = work.first; tile < work.end; tile++) {
        work.out[tile * (TILE / 8) + threadIdx.x] = mixed_inputs(work, tile);
    }
}

// Reads only. The compiler must not see that nothing is written: one value in 2^64 is.
DEVICE void stream_read(const Work& work) {
    for (unsigned tile = work.first; tile < work.end; tile++) {
        const uint4 mixed = mixed_inputs(work, tile);
        if (mixed.x == 0x9e3779b9u && mixed.w == 0xbb67ae85u) work.out[threadIdx.x] = mixed;
    }
}

ENTRY(stream_bfloat16, stream)
ENTRY(stream_read_bfloat16, stream_read)
