// Kernels with one mistake each; launched as two blocks of 128 threads, over a word of output for each
// thread.
#ifndef EXPORT_KERNEL
#define EXPORT_KERNEL(name)
#endif

__device__ static unsigned index_in_grid() { return blockIdx.x * blockDim.x + threadIdx.x; }

// ---- threads that cannot go on

extern "C" __global__ void half_at_a_barrier(unsigned* output) {
    if (threadIdx.x < 64) __syncthreads();
    output[index_in_grid()] = 0;
    __syncthreads();
}
EXPORT_KERNEL(half_at_a_barrier)

extern "C" __global__ void lane_waits_for_ended(unsigned* output) {
    if (threadIdx.x == 3) return;
    __syncthreads();
    output[index_in_grid()] = __ballot_sync(~0u, 1);
}
EXPORT_KERNEL(lane_waits_for_ended)

extern "C" __global__ void lane_not_in_its_mask(unsigned* output) {
    output[index_in_grid()] = __ballot_sync(0xfu, 1);
}
EXPORT_KERNEL(lane_not_in_its_mask)

extern "C" __global__ void lane_never_comes(unsigned* output) {
    if (threadIdx.x % 32 == 0) {
        __syncwarp(1);
        return;
    }
    __syncwarp(~1u);
    output[index_in_grid()] = threadIdx.x % 32 == 1 ? __ballot_sync(3u, 1) : 0;
}
EXPORT_KERNEL(lane_never_comes)

extern "C" __global__ void barrier_against_shuffle(unsigned* output) {
    if (threadIdx.x % 32 == 0) __syncthreads();
    output[index_in_grid()] = __shfl_sync(~0u, threadIdx.x, 0);
    __syncthreads();
}
EXPORT_KERNEL(barrier_against_shuffle)

extern "C" __global__ void different_operations(unsigned* output) {
    output[index_in_grid()] = threadIdx.x % 2 ? __ballot_sync(~0u, 1) : __shfl_sync(~0u, 1u, 0);
}
EXPORT_KERNEL(different_operations)

// ---- races

extern "C" __global__ void no_barrier_before_reading(unsigned* output) {
    __shared__ unsigned row[128];
    row[threadIdx.x] = threadIdx.x;
    output[index_in_grid()] = row[127 - threadIdx.x];
}
EXPORT_KERNEL(no_barrier_before_reading)

extern "C" __global__ void no_barrier_before_writing(unsigned* output) {
    __shared__ unsigned row[128];
    row[threadIdx.x] = threadIdx.x;
    __syncthreads();
    unsigned value = row[127 - threadIdx.x];
    row[threadIdx.x] = value;
    output[index_in_grid()] = value;
}
EXPORT_KERNEL(no_barrier_before_writing)

extern "C" __global__ void warp_without_syncwarp(unsigned* output) {
    __shared__ unsigned row[128];
    row[threadIdx.x] = threadIdx.x;
    output[index_in_grid()] = row[threadIdx.x ^ 1];
}
EXPORT_KERNEL(warp_without_syncwarp)

// This one is right.
extern "C" __global__ void warp_with_syncwarp(unsigned* output) {
    __shared__ unsigned row[128];
    row[threadIdx.x] = threadIdx.x;
    __syncwarp();
    output[index_in_grid()] = row[threadIdx.x ^ 1];
}
EXPORT_KERNEL(warp_with_syncwarp)

// A shuffle makes lanes meet, but orders no memory.
extern "C" __global__ void shuffle_for_a_barrier(unsigned* output) {
    __shared__ unsigned row[128];
    row[threadIdx.x] = threadIdx.x;
    unsigned zero = __shfl_sync(~0u, 0u, 0);
    output[index_in_grid()] = row[threadIdx.x ^ 1] + zero;
}
EXPORT_KERNEL(shuffle_for_a_barrier)

extern "C" __global__ void count_without_atomics(unsigned* output) { output[blockIdx.x]++; }
EXPORT_KERNEL(count_without_atomics)

extern "C" __global__ void atomic_and_plain(unsigned* output) {
    if (threadIdx.x == 0) output[blockIdx.x] = 0;
    atomicAdd(output + blockIdx.x, 1u);
}
EXPORT_KERNEL(atomic_and_plain)

extern "C" __global__ void blocks_write_the_same(unsigned* output) { output[threadIdx.x] = threadIdx.x; }
EXPORT_KERNEL(blocks_write_the_same)

// Half a word each, but one of them writes both halves back.
extern "C" __global__ void neighbours_in_a_word(unsigned* output) {
    auto* halves = reinterpret_cast<unsigned short*>(output);
    unsigned i = index_in_grid();
    if (i % 2 == 0) halves[i] = 1;
    if (i % 2 == 1) output[i / 2] = (output[i / 2] & 0xffffu) | 0x10000u;
}
EXPORT_KERNEL(neighbours_in_a_word)

// ---- out of bounds

extern "C" __global__ void write_past_the_end(unsigned* output) { output[index_in_grid() + 1] = 1; }
EXPORT_KERNEL(write_past_the_end)

extern "C" __global__ void read_far_away(unsigned* output) {
    const unsigned* far = output + (1 << 16);
    output[index_in_grid()] = far[threadIdx.x % 2];
}
EXPORT_KERNEL(read_far_away)

// Of memory that nothing has been copied to yet.
extern "C" __global__ void follow_an_address(unsigned* output) {
    unsigned* const* addresses = reinterpret_cast<unsigned* const*>(output);
    addresses[threadIdx.x % 2][0] = 1;
}
EXPORT_KERNEL(follow_an_address)

extern "C" __global__ void shared_past_the_end(unsigned* output) {
    __shared__ unsigned row[128];
    row[threadIdx.x + blockIdx.x] = 1;
    __syncthreads();
    output[index_in_grid()] = row[threadIdx.x];
}
EXPORT_KERNEL(shared_past_the_end)

__device__ static void set(unsigned* row, unsigned count) {
    for (unsigned i = threadIdx.x; i <= count; i += blockDim.x) row[i] = 1;
}

extern "C" __global__ void shared_by_pointer(unsigned* output) {
    __shared__ unsigned row[256];
    set(row, 256);
    __syncthreads();
    output[index_in_grid()] = row[threadIdx.x];
}
EXPORT_KERNEL(shared_by_pointer)

template <class T> __device__ static T* of_any_type() {
    __shared__ T row[100];
    return row;
}

extern "C" __global__ void shared_of_a_template(unsigned* output) {
    set(of_any_type<unsigned>(), 100);
    __syncthreads();
    output[index_in_grid()] = 0;
}
EXPORT_KERNEL(shared_of_a_template)

extern "C" __global__ void local_index(unsigned* output) {
    unsigned values[4] = {1, 2, 3, 4};
    values[threadIdx.x % 4] = threadIdx.x;
    output[index_in_grid()] = values[threadIdx.x % 5];
}
EXPORT_KERNEL(local_index)
