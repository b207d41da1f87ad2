// How long the lanes of a warp wait for each other at counters in shared memory: an atomic instruction of a warp takes a
// pass for each of its lanes that change the same word.
//
// Lanes run one after the other here, so which of their atomics are one instruction of the warp is said by the kernels, with
// LOCKSTEP: lanes that have passed it equally often are at the same step. What a lane changes at one step one after the other
// are instructions of their own.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <utility>
#include <vector>

namespace cuda_cpu {

struct Passes {
    // Instructions with a lane that took part; the lanes; the passes that they took.
    uint64_t instructions = 0, lanes = 0, passes = 0;

    void operator+=(const Passes& other) {
        instructions += other.instructions;
        lanes += other.lanes;
        passes += other.passes;
    }
};

// Of the blocks that one OS thread runs.
class Conflicts {
    struct Lane {
        unsigned step = 0, atomics = 0;
    };
    std::vector<Lane> lanes;
    std::unordered_map<uint64_t, std::vector<const volatile void*>> words_of;
    Passes passes;

public:
    void begin_block(unsigned threads) { lanes.assign(threads, {}); }
    void add(unsigned rank, unsigned step, const volatile void* word);
    void end_block();
    // Of the blocks since the last time.
    Passes take() { return std::exchange(passes, {}); }
};

}  // namespace cuda_cpu
