// Runs a grid of CUDA threads: a fiber for each thread, an OS thread for each block that runs.
//
// The order of the threads of a block is drawn from a seed. Threads are never interrupted: one runs until it
// waits for others or ends. A block in which nothing can go on, or whose threads meet where they must not, is
// reported and ends the launch. Blocks run on all cores of the machine, or on as many as FAKE_CUDA_THREADS
// says; on one where kernels are watched.
#pragma once

#include "conflicts.h"
#include "cuda_cpu.h"

#include <string>

namespace cuda_cpu {

struct Launch {
    const Kernel* kernel;
    void* const* arguments;
    dim3 grid, threads;
    size_t dynamic_shared_bytes;
    uint64_t seed;
};

constexpr unsigned BLOCK_THREADS_MAX = 1024;

// Runs a launch to its end; false if it failed. One launch runs at a time: the caller sees to it.
bool run(const Launch& launch);

// How lanes waited for each other since the last time; nothing where it is not wanted.
Passes take_passes();

// ---- what checks.cpp asks about the CUDA thread that runs

// Phases count barriers: what happened in an earlier phase of the block is over. They go on from launch to
// launch.
struct Standing {
    unsigned launch_first_phase, block_first_phase, phase;
    // The last __syncwarp: its own phase, and who took part.
    unsigned warp_phase, warp_mask;
};
const Standing& standing();

// Its kernel, block and index, in words.
std::string running_thread();

bool on_a_stack(uintptr_t address);
bool in_dynamic_shared(uintptr_t address, size_t bytes);

}  // namespace cuda_cpu
