// Device memory and pinned memory: the machine's own, poisoned, between guard zones.
//
// New memory is full of a pattern, so that what was never written does not look like zeros. A guard zone that
// was written to ends the process, when the memory is freed or the process ends.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>

namespace cuda_cpu {

// To whom memory belongs: a device by its number, or the host.
constexpr int HOST = -1;

struct Allocation {
    uintptr_t begin;
    size_t bytes;
    int owner;

    bool holds(uintptr_t from, size_t count) const {
        return from >= begin && from - begin <= bytes && count <= bytes - (from - begin);
    }
};

class Memory {
    std::mutex mutex;
    std::map<uintptr_t, Allocation> allocations;
    std::map<int, size_t> used, most_used;

public:
    // New memory of that owner, unless it would then have more than `bytes_max`: 0.
    uintptr_t allocate(int owner, size_t bytes, size_t bytes_max);
    // False if no allocation of that kind begins there.
    bool free(uintptr_t begin, bool of_host);
    // The allocation in which an address lies, or whose end it is; false if there is none.
    bool find(uintptr_t address, Allocation& found);
    size_t used_bytes(int owner);
    size_t most_used_bytes(int owner);
    // Ends the process if a guard zone was written to.
    void check_all();
};

Memory& memory();

}  // namespace cuda_cpu
