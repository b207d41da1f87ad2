// Allocations with guards: see memory.h.
#include "memory.h"

#include "report.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace cuda_cpu {

namespace {

// Devices align to 256 bytes, and kernels may rely on it. The guards keep the alignment.
constexpr size_t ALIGNMENT_BYTES = 256, GUARD_BYTES = 4096;
static_assert(GUARD_BYTES % ALIGNMENT_BYTES == 0);
constexpr unsigned char GUARD = 0x5C, NEW = 0xA7, FREED = 0xD9;

unsigned char* guard_before(const Allocation& allocation) {
    return reinterpret_cast<unsigned char*>(allocation.begin) - GUARD_BYTES;
}
unsigned char* guard_after(const Allocation& allocation) {
    return reinterpret_cast<unsigned char*>(allocation.begin) + allocation.bytes;
}

// The offset of the first byte of a guard that was written to, or GUARD_BYTES.
size_t first_damage(const unsigned char* guard) {
    size_t offset = 0;
    while (offset < GUARD_BYTES && guard[offset] == GUARD) offset++;
    return offset;
}

const char* kind(const Allocation& allocation) {
    return allocation.owner == HOST ? "pinned host memory" : "device memory";
}

void check(const Allocation& allocation) {
    size_t before = first_damage(guard_before(allocation)), after = first_damage(guard_after(allocation));
    if (before == GUARD_BYTES && after == GUARD_BYTES) return;
    if (before < GUARD_BYTES) {
        say("out of bounds: %zu bytes before %zu bytes of %s were written to", GUARD_BYTES - before,
            allocation.bytes, kind(allocation));
    } else {
        say("out of bounds: byte %zu of %zu bytes of %s was written to", allocation.bytes + after,
            allocation.bytes, kind(allocation));
    }
    give_up();
}

}  // namespace

uintptr_t Memory::allocate(int owner, size_t bytes, size_t bytes_max) {
    {
        std::lock_guard lock(mutex);
        if (bytes > bytes_max || used[owner] > bytes_max - bytes) return 0;
        used[owner] += bytes;
        most_used[owner] = std::max(most_used[owner], used[owner]);
    }
    size_t whole = (bytes + 2 * GUARD_BYTES + ALIGNMENT_BYTES - 1) / ALIGNMENT_BYTES * ALIGNMENT_BYTES;
    auto* start = static_cast<unsigned char*>(std::aligned_alloc(ALIGNMENT_BYTES, whole));
    if (!start) {
        say("the machine has no %zu bytes for the device", whole);
        give_up();
    }
    Allocation allocation{reinterpret_cast<uintptr_t>(start) + GUARD_BYTES, bytes, owner};
    std::memset(guard_before(allocation), GUARD, GUARD_BYTES);
    std::memset(guard_after(allocation), GUARD, GUARD_BYTES);
    std::memset(start + GUARD_BYTES, NEW, bytes);
    std::lock_guard lock(mutex);
    allocations.emplace(allocation.begin, allocation);
    return allocation.begin;
}

bool Memory::free(uintptr_t begin, bool of_host) {
    Allocation allocation;
    {
        std::lock_guard lock(mutex);
        auto found = allocations.find(begin);
        if (found == allocations.end() || (found->second.owner == HOST) != of_host) return false;
        allocation = found->second;
        allocations.erase(found);
        used[allocation.owner] -= allocation.bytes;
    }
    check(allocation);
    std::memset(reinterpret_cast<void*>(begin), FREED, allocation.bytes);
    std::free(guard_before(allocation));
    return true;
}

bool Memory::find(uintptr_t address, Allocation& found) {
    std::lock_guard lock(mutex);
    auto after = allocations.upper_bound(address);
    if (after == allocations.begin()) return false;
    found = std::prev(after)->second;
    return found.holds(address, 0);
}

size_t Memory::used_bytes(int owner) {
    std::lock_guard lock(mutex);
    return used[owner];
}

size_t Memory::most_used_bytes(int owner) {
    std::lock_guard lock(mutex);
    return most_used[owner];
}

void Memory::check_all() {
    std::lock_guard lock(mutex);
    for (const auto& [begin, allocation] : allocations) check(allocation);
}

Memory& memory() {
    static Memory& memory = *new Memory;
    return memory;
}

}  // namespace cuda_cpu
