// Kernels that are right, one for each way in which threads wait for each other or share memory.
#ifndef EXPORT_KERNEL
#define EXPORT_KERNEL(name)
#endif
#ifndef LOCKSTEP
#define LOCKSTEP()
#endif

__device__ static unsigned index_in_grid() { return blockIdx.x * blockDim.x + threadIdx.x; }

// ---- barriers

extern "C" __global__ void reverse(unsigned* output) {
    __shared__ unsigned indices[256];
    indices[threadIdx.x] = index_in_grid();
    __syncthreads();
    output[index_in_grid()] = indices[255 - threadIdx.x];
}
EXPORT_KERNEL(reverse)

extern "C" __global__ void count_odd(unsigned* output) {
    unsigned odd = static_cast<unsigned>(__syncthreads_count(threadIdx.x & 1));
    unsigned none = __syncthreads_or(threadIdx.x > 95), all = __syncthreads_and(threadIdx.x < 96);
    output[index_in_grid()] = odd + (none == 0 && all == 1 ? threadIdx.x % 3 : 99);
}
EXPORT_KERNEL(count_odd)

// Shared memory that was never written to must not look as if it had been.
extern "C" __global__ void poisoned(unsigned* output) {
    __shared__ unsigned words[128];
    output[index_in_grid()] = words[threadIdx.x];
    __syncthreads();
    words[threadIdx.x] = 0;
}
EXPORT_KERNEL(poisoned)

// Threads that have ended are not waited for.
extern "C" __global__ void leave_early(unsigned* output) {
    __shared__ unsigned first;
    output[index_in_grid()] = 7;
    if (threadIdx.x < 100) return;
    if (threadIdx.x == 100) first = threadIdx.x;
    __syncthreads();
    output[index_in_grid()] = first;
}
EXPORT_KERNEL(leave_early)

extern "C" __global__ void many_barriers(unsigned* output) {
    __shared__ unsigned row[2][1024];
    unsigned next = (threadIdx.x + 1) % 1024, value = threadIdx.x;
    for (unsigned round = 0; round < 40; round++) {
        row[round % 2][threadIdx.x] = value;
        __syncthreads();
        value = row[round % 2][next];
    }
    output[index_in_grid()] = value < threadIdx.x ? value + 1024 : value;
}
EXPORT_KERNEL(many_barriers)

// ---- warps

extern "C" __global__ void sum_of_warp(unsigned* output) {
    unsigned sum = index_in_grid();
    for (unsigned by = 16; by; by /= 2) sum += __shfl_down_sync(~0u, sum, by);
    sum = __shfl_sync(~0u, sum, 0);
    output[index_in_grid()] = sum == __reduce_add_sync(~0u, index_in_grid()) ? sum : 0;
}
EXPORT_KERNEL(sum_of_warp)

extern "C" __global__ void shuffles(unsigned* output) {
    unsigned mine = threadIdx.x;
    output[mine] = __shfl_sync(~0u, mine, 3) + 1000 * __shfl_xor_sync(~0u, mine, 5) +
                   1000000 * __shfl_down_sync(~0u, mine, 4);
}
EXPORT_KERNEL(shuffles)

extern "C" __global__ void votes(unsigned* output) {
    unsigned even = __ballot_sync(~0u, threadIdx.x % 2 == 0);
    bool right =
        __any_sync(~0u, threadIdx.x == 9) && !__all_sync(~0u, threadIdx.x == 9) && __popc(even) == 16;
    output[threadIdx.x] = right ? even + threadIdx.x : 0;
}
EXPORT_KERNEL(votes)

// The two halves of a warp go ways of their own.
extern "C" __global__ void halves(unsigned* output) {
    unsigned lane = threadIdx.x % 32;
    if (lane < 16) {
        unsigned sum = 0;
        for (unsigned round = 0; round < 5; round++) sum += __shfl_xor_sync(0xffffu, lane, 1);
        output[threadIdx.x] = sum == 5 * (lane ^ 1) ? __ballot_sync(0xffffu, 1) : 0;
    } else {
        output[threadIdx.x] = __ballot_sync(0xffff0000u, 1);
    }
    __syncwarp();
}
EXPORT_KERNEL(halves)

extern "C" __global__ void same_digit(unsigned* output) {
    output[threadIdx.x] = __match_any_sync(~0u, threadIdx.x % 5);
}
EXPORT_KERNEL(same_digit)

// ---- atomics

extern "C" __global__ void total(unsigned* sums) {
    atomicAdd(sums, 1u);
    atomicOr(sums + 1, threadIdx.x);
    atomicMax(sums + 2, index_in_grid());
}
EXPORT_KERNEL(total)

extern "C" __global__ void histogram(unsigned* output) {
    __shared__ unsigned counts[256];
    counts[threadIdx.x] = 0;
    __syncthreads();
    atomicAdd(counts + threadIdx.x % 16, 1u);
    __syncthreads();
    output[index_in_grid()] = counts[threadIdx.x];
}
EXPORT_KERNEL(histogram)

// In each round half of the lanes wait for each other, now these, now those.
extern "C" __global__ void in_turns(unsigned* output) {
    __shared__ unsigned count;
    if (threadIdx.x == 0) count = 0;
    __syncthreads();
    for (unsigned round = 0; round < 4; round++) {
        LOCKSTEP();
        if ((threadIdx.x + round) % 2) atomicAdd(&count, 1u);
    }
    __syncthreads();
    output[index_in_grid()] = count;
}
EXPORT_KERNEL(in_turns)

extern "C" __global__ void add_one(const unsigned* input, unsigned* output) {
    output[index_in_grid()] = input[index_in_grid()] + 1;
}
EXPORT_KERNEL(add_one)

// ---- what the speed is measured on: eight elements a thread, as most kernels have

__device__ static unsigned scaled(unsigned word, float factor, bool& odd) {
    float low = __fmul_rn(factor, __uint_as_float(word << 16));
    float high = __fmul_rn(factor, __uint_as_float(word & 0xffff0000u));
    odd |= (__float_as_uint(low) & 0x7f800000u) == 0x7f800000u;
    odd |= (__float_as_uint(high) & 0x7f800000u) == 0x7f800000u;
    return __float_as_uint(low) >> 16 | (__float_as_uint(high) & 0xffff0000u);
}

__device__ static bool scale_eight(const uint4* input, uint4* output, unsigned scale) {
    uint4 packed = __ldcs(input + index_in_grid());
    float factor = __uint_as_float(scale);
    bool odd = false;
    uint4 result;
    result.x = scaled(packed.x, factor, odd);
    result.y = scaled(packed.y, factor, odd);
    result.z = scaled(packed.z, factor, odd);
    result.w = scaled(packed.w, factor, odd);
    __stcs(output + index_in_grid(), result);
    return odd;
}

extern "C" __global__ void scale_and_vote(const uint4* input, uint4* output, unsigned* odd_blocks,
                                          unsigned scale) {
    bool odd = scale_eight(input, output, scale);
    if (__syncthreads_or(odd) && threadIdx.x == 0) odd_blocks[blockIdx.x] = 1;
}
EXPORT_KERNEL(scale_and_vote)

extern "C" __global__ void scale_only(const uint4* input, uint4* output, unsigned* odd_blocks,
                                      unsigned scale) {
    if (scale_eight(input, output, scale)) atomicOr(odd_blocks + blockIdx.x, 1u);
}
EXPORT_KERNEL(scale_only)

extern "C" __global__ void count_keys(const uint4* input, uint4*, unsigned* odd_blocks, unsigned) {
    __shared__ unsigned counts[512];
    for (unsigned i = threadIdx.x; i < 512; i += blockDim.x) counts[i] = 0;
    __syncthreads();
    uint4 packed = __ldcs(input + index_in_grid());
    for (unsigned word : {packed.x, packed.y, packed.z, packed.w}) {
        atomicAdd(counts + (word & 511), 1u);
        atomicAdd(counts + (word >> 16 & 511), 1u);
    }
    __syncthreads();
    unsigned sum = 0;
    for (unsigned i = threadIdx.x; i < 512; i += blockDim.x) sum += counts[i];
    if (sum > 512) odd_blocks[blockIdx.x] = sum;
}
EXPORT_KERNEL(count_keys)

extern "C" __global__ void shuffle_only(const uint4* input, uint4* output, unsigned*, unsigned) {
    uint4 packed = __ldcs(input + index_in_grid());
    for (unsigned by = 16; by; by /= 2) packed.x += __shfl_down_sync(~0u, packed.x, by);
    __stcs(output + index_in_grid(), packed);
}
EXPORT_KERNEL(shuffle_only)
