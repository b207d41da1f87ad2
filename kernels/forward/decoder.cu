// What a decoder's forward pass does between its products: norms, positions, softmax, the gate. Products are cuBLAS's.
//
// All numbers are float32 in the device's memory, row by row. These entries belong to no merge and have parameters of their own;
// bits do not count here, but they round as everything else does.
#include "prelude.cuh"

#define DECODER_ENTRY(name, ...)                                                    \
    extern "C" __global__ void __launch_bounds__(THREADS) decoder_##name(__VA_ARGS__)

// This thread's element, where each has one.
DEVICE unsigned long long element() { return (unsigned long long)blockIdx.x * THREADS + threadIdx.x; }

// e^x within 2^-22 of it, relatively; below -87 and above 88 its value there. NaN stays NaN.
DEVICE float exponential(float x) {
    // Added to a number of small magnitude, it leaves the nearest whole number in the lowest bits.
    constexpr float ROUND = 12582912.0f;
    // The Taylor series from its last term to its second.
    constexpr float SERIES[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f};
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    const float shifted = add(mul(x, 1.44269504088896340736f), ROUND);
    const float whole = sub(shifted, ROUND);
    // ln 2 in two parts, the upper of which has few bits, so that small multiples of it are exact.
    const float r = sub(sub(x, mul(whole, 0.6933594f)), mul(whole, -2.1219444e-4f));
    float series = 1.0f / 5040;
#pragma unroll
    for (float term : SERIES) series = add(mul(series, r), term);
    const float power = add(1.0f, add(r, mul(mul(r, r), series)));
    return mul(power, __uint_as_float((__float_as_uint(shifted) << 23) + 0x3f800000u));
}

// One number of all threads' by `both`, which every thread gets.
template <class Both>
DEVICE float of_all(float own, Both both) {
    __shared__ float values[THREADS];
    // What an earlier call left has been read by all.
    __syncthreads();
    values[threadIdx.x] = own;
    __syncthreads();
    for (unsigned half = THREADS / 2; half > 0; half /= 2) {
        if (threadIdx.x < half) values[threadIdx.x] = both(values[threadIdx.x], values[threadIdx.x + half]);
        __syncthreads();
    }
    return values[0];
}

// Numbers as sums of three in bfloat16: the terms of all of them, then the second terms, then the third.
DECODER_ENTRY(split, const float* x, unsigned short* terms, unsigned long long count) {
    const unsigned long long i = element();
    if (i >= count) return;
    float rest = x[i];
#pragma unroll
    for (unsigned term = 0; term < 3; term++) {
        const unsigned bits = bf16_of(rest);
        terms[term * count + i] = (unsigned short)bits;
        rest = sub(rest, float_of_bf16(bits));
    }
}
EXPORT_KERNEL(decoder_split)

// Rows, a block for each, brought to a mean square of 1 and multiplied with `weight`. `y` may be `x`.
DECODER_ENTRY(norm, const float* x, const float* weight, float* y, unsigned width, float epsilon) {
    const float* own = x + (unsigned long long)blockIdx.x * width;
    float* out = y + (unsigned long long)blockIdx.x * width;
    float squares = 0.0f;
    for (unsigned i = threadIdx.x; i < width; i += THREADS) squares = add(squares, mul(own[i], own[i]));
    squares = of_all(squares, [](float a, float b) { return add(a, b); });
    const float scale = __fdiv_rn(1.0f, __fsqrt_rn(add(__fdiv_rn(squares, (float)width), epsilon)));
    for (unsigned i = threadIdx.x; i < width; i += THREADS) out[i] = mul(mul(own[i], scale), weight[i]);
}
EXPORT_KERNEL(decoder_norm)

// Turns every head of a text's tokens by the token's position: a thread for each pair, of which there are `half` in a head. The
// first half of a head pairs with the second.
DECODER_ENTRY(rotate, float* x, const float2* rotations, unsigned heads, unsigned half, unsigned long long pairs) {
    const unsigned long long i = element();
    if (i >= pairs) return;
    const unsigned pair = (unsigned)(i % half);
    const float2 turn = rotations[i / half / heads * half + pair];
    float* head = x + i / half * 2 * half;
    const float a = head[pair], b = head[half + pair];
    head[pair] = sub(mul(a, turn.x), mul(b, turn.y));
    head[half + pair] = add(mul(b, turn.x), mul(a, turn.y));
}
EXPORT_KERNEL(decoder_rotate)

// Softmax of rows of `seen` scores, a block for each; `tokens` of them belong to a head. The score `last` and those before it, at
// most `window`, count for the first token, one further for each that follows; all others become 0.
DECODER_ENTRY(soften, float* scores, unsigned tokens, unsigned seen, unsigned last, unsigned window) {
    float* row = scores + (unsigned long long)blockIdx.x * seen;
    const unsigned end = last + blockIdx.x % tokens + 1;
    const unsigned first = end > window ? end - window : 0;
    float most = __uint_as_float(0xff800000u);
    for (unsigned i = first + threadIdx.x; i < end; i += THREADS) most = row[i] > most ? row[i] : most;
    most = of_all(most, [](float a, float b) { return a > b ? a : b; });
    float sum = 0.0f;
    for (unsigned i = first + threadIdx.x; i < end; i += THREADS) {
        row[i] = exponential(sub(row[i], most));
        sum = add(sum, row[i]);
    }
    const float scale = __fdiv_rn(1.0f, of_all(sum, [](float a, float b) { return add(a, b); }));
    for (unsigned i = threadIdx.x; i < seen; i += THREADS) row[i] = i >= first && i < end ? mul(row[i], scale) : 0.0f;
}
EXPORT_KERNEL(decoder_soften)

// Multiplies `up` with the gate's SiLU, in place of the gate.
DECODER_ENTRY(gate, float* gate, const float* up, unsigned long long count) {
    const unsigned long long i = element();
    if (i >= count) return;
    gate[i] = mul(__fdiv_rn(gate[i], add(1.0f, exponential(-gate[i]))), up[i]);
}
EXPORT_KERNEL(decoder_gate)

// Adds a bias to rows of `width`.
DECODER_ENTRY(bias, float* y, const float* bias, unsigned width, unsigned long long count) {
    const unsigned long long i = element();
    if (i < count) y[i] = add(y[i], bias[i % width]);
}
EXPORT_KERNEL(decoder_bias)
