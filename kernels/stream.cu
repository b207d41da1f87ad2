// The yardstick of benches: reads inputs once and writes one output, with next to no arithmetic.
//
// It has the bytes of a merge and the memory accesses of the kernels beside it, so a kernel's time over this one's says
// what its arithmetic costs.
#include "prelude.cuh"

// The exclusive or of the inputs that are to be touched, batch by batch so that enough loads are in flight.
template <unsigned FLOAT>
DEVICE uint4 mixed_inputs(const Work& work, unsigned tile) {
    constexpr unsigned BATCH = 4;
    const unsigned touched = work.job[0];
    uint4 mixed = make_uint4(0, 0, 0, 0);
    for (unsigned input = 0; input < touched; input += BATCH) {
        Raw raw[BATCH] = {};
#pragma unroll
        for (unsigned i = 0; i < BATCH; i++) {
            if (input + i < touched) raw[i] = load<FLOAT>(work, input + i, tile);
        }
#pragma unroll
        for (unsigned i = 0; i < BATCH; i++) {
            const uint4 low = raw[i].low;
            mixed = make_uint4(mixed.x ^ low.x, mixed.y ^ low.y, mixed.z ^ low.z, mixed.w ^ low.w);
            if (FLOAT == FLOAT_BF16 || FLOAT == FLOAT_F16) continue;
            const uint4 high = raw[i].high;
            mixed = make_uint4(mixed.x ^ high.x, mixed.y ^ high.y, mixed.z ^ high.z, mixed.w ^ high.w);
        }
    }
    return mixed;
}

template <unsigned FLOAT>
DEVICE void stream_writing(const Work& work) {
    for (unsigned tile = work.first; tile < work.end; tile++) {
        work.out[tile * (TILE / 8) + threadIdx.x] = mixed_inputs<FLOAT>(work, tile);
    }
}

// Reads only. The compiler must not see that nothing is written: one value in 2^64 is.
template <unsigned FLOAT>
DEVICE void stream(const Work& work) {
    for (unsigned tile = work.first; tile < work.end; tile++) {
        const uint4 mixed = mixed_inputs<FLOAT>(work, tile);
        if (mixed.x == 0x9e3779b9u && mixed.w == 0xbb67ae85u) work.out[threadIdx.x] = mixed;
    }
}

#define STREAM(name, FLOAT)                        \
    ENTRY(stream_1_##name, stream_writing<FLOAT>)  \
    ENTRY(stream_##name, stream<FLOAT>)

STREAM(float32, FLOAT_F32)
STREAM(float16, FLOAT_F16)
STREAM(bfloat16, FLOAT_BF16)
STREAM(mixed, FLOAT_MIXED)
