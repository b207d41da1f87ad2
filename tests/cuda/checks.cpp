// What watches kernels that were compiled with -fsanitize=thread or -fsanitize=kernel-address.
//
// The compiler puts a call before every access to memory. The functions that are called stand here, and not
// in the compiler's own libraries: those want to be loaded first into the whole program, and know nothing of
// blocks and barriers. What is found ends the process.
//
// Bounds: an access has to lie within one allocation of the driver, or within a variable of the library.
//
// Races: a byte remembers who read it, wrote it and changed it atomically, and in which phase of which block.
// Two accesses of different threads, of which one writes, are a race unless both are atomic, or a barrier of
// the block or a
// __syncwarp of the two lanes lies between them. Other operations of a warp order nothing, by CUDA's rules.
// Blocks of a launch are never ordered. Fences are not looked at: hand-made synchronisation would be reported as
// a race. Not seen: what the compiler keeps in registers, and arrays of a thread's own (but for their
// indices).
#include "engine.h"
#include "memory.h"
#include "report.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <dlfcn.h>
#include <link.h>
#include <string>
#include <unordered_map>
#include <vector>

#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim

namespace cuda_cpu {

namespace {

// ---- where in the program

using ProgramCounter = const void*;

uintptr_t library_begin() {
    static const uintptr_t begin = [] {
        Dl_info library;
        dladdr(reinterpret_cast<const void*>(&kernels), &library);
        return reinterpret_cast<uintptr_t>(library.dli_fbase);
    }();
    return begin;
}

uintptr_t library_end() {
    static const uintptr_t end = [] {
        uintptr_t end = 0;
        auto look = [](dl_phdr_info* library, size_t, void* end) {
            if (library->dlpi_addr != library_begin()) return 0;
            for (int i = 0; i < library->dlpi_phnum; i++) {
                const auto& segment = library->dlpi_phdr[i];
                if (segment.p_type != PT_LOAD) continue;
                auto& last = *static_cast<uintptr_t*>(end);
                last = std::max<uintptr_t>(last, library->dlpi_addr + segment.p_vaddr + segment.p_memsz);
            }
            return 1;
        };
        dl_iterate_phdr(look, &end);
        return end;
    }();
    return end;
}

// File and line of an offset in the library, as addr2line knows them.
std::string line_at(uintptr_t offset) {
    Dl_info library;
    dladdr(reinterpret_cast<const void*>(&kernels), &library);
    char command[1024], line[1024] = "";
    // The call before the return address.
    std::snprintf(command, sizeof command, "addr2line -e '%s' %#zx 2>&1", library.dli_fname, offset - 1);
    if (FILE* output = popen(command, "r")) {
        if (!std::fgets(line, sizeof line, output)) line[0] = 0;
        pclose(output);
    }
    std::string text = line;
    text.erase(std::min(text.find_first_of(" \n"), text.size()));
    return text.substr(text.rfind('/') + 1);
}

uint32_t offset_of(ProgramCounter place) {
    return static_cast<uint32_t>(reinterpret_cast<uintptr_t>(place) - library_begin());
}

// ---- bounds

// What the compiler tells of each variable: the layout is the compiler's.
struct Variable {
    uintptr_t begin, bytes, bytes_with_guard;
    const char *name, *module;
    uintptr_t initialized_at_run_time;
    const void* location;
    uintptr_t indicator;
};

std::vector<Variable>& variables() {
    static auto& variables = *new std::vector<Variable>;
    return variables;
}

const Variable* variable_at(uintptr_t address) {
    auto& all = variables();
    auto after = std::ranges::upper_bound(all, address, {}, &Variable::begin);
    if (after == all.begin()) return nullptr;
    const Variable& found = *std::prev(after);
    return address - found.begin < found.bytes_with_guard ? &found : nullptr;
}

[[noreturn]] void out_of_bounds(uintptr_t address, size_t bytes, ProgramCounter place,
                                const std::string& of) {
    say("out of bounds: %zu bytes at %#zx, %s (%s; %s)", bytes, address, of.c_str(),
        line_at(offset_of(place)).c_str(), running_thread().c_str());
    give_up();
}

enum class Kind { Device, Shared };

// The allocation of the last access, for as long as the launch lasts.
Allocation last_allocation;
unsigned last_allocation_launch = 0;

Kind check_bounds(uintptr_t address, size_t bytes, ProgramCounter place) {
    unsigned launch = standing().launch_first_phase;
    if (launch == last_allocation_launch && last_allocation.holds(address, bytes)) return Kind::Device;
    Allocation found;
    if (memory().find(address, found) && address < found.begin + found.bytes) {
        if (!found.holds(address, bytes)) {
            out_of_bounds(address, bytes, place,
                          "at the end of " + std::to_string(found.bytes) + " bytes of memory");
        }
        last_allocation = found;
        last_allocation_launch = launch;
        return Kind::Device;
    }
    if (const Variable* variable = variable_at(address)) {
        if (address + bytes > variable->begin + variable->bytes) {
            out_of_bounds(address, bytes, place, std::string("at the end of ") + variable->name);
        }
    } else if (!(address >= library_begin() && address + bytes <= library_end()) &&
               !in_dynamic_shared(address, bytes)) {
        out_of_bounds(address, bytes, place, "in no memory of the device");
    }
    return Kind::Shared;
}

// ---- races

enum Way { READ, WRITE, ATOMIC };
constexpr const char* WAYS[] = {"read", "written", "changed atomically"};

struct Access {
    uint32_t phase = 0;
    uint32_t rank : 10 = 0, offset : 22 = 0;
};

// The last accesses of one way. Two of different threads are enough: one of them is not of the thread that
// asks.
struct History {
    Access last, of_other_thread, of_other_block;

    void add(Access access, const Standing& standing) {
        if (last.phase >= standing.launch_first_phase && last.phase < standing.block_first_phase) {
            of_other_block = last;
            last = of_other_thread = {};
        }
        if (last.rank != access.rank) of_other_thread = last;
        last = access;
    }
};

struct Byte {
    History histories[3];
};

constexpr size_t PAGE_BYTES = 1024;
using Page = std::vector<Byte>;

// What is remembered of the memory that the launch touched. Pages are used again without clearing: what they
// remember is of earlier phases.
class Shadow {
    std::unordered_map<uintptr_t, Page> pages;
    std::vector<Page> free;
    unsigned launch = 0;
    uintptr_t last_number = 0;
    Page* last = nullptr;

    void forget_all() {
        for (auto& [number, page] : pages) free.push_back(std::move(page));
        pages.clear();
        last = nullptr;
    }

public:
    Byte& at(uintptr_t address, unsigned current_launch) {
        if (launch != current_launch) forget_all();
        launch = current_launch;
        uintptr_t number = address / PAGE_BYTES;
        if (!last || number != last_number) {
            Page& page = pages[number];
            if (page.empty() && !free.empty()) {
                page = std::move(free.back());
                free.pop_back();
            }
            page.resize(PAGE_BYTES);
            last = &page;
            last_number = number;
        }
        return (*last)[address % PAGE_BYTES];
    }
};

Shadow& shadow() {
    static Shadow& shadow = *new Shadow;
    return shadow;
}

// Whether an access came before what this thread does now, or may have come at the same time.
bool is_unordered(Access access, unsigned rank, const Standing& standing, Kind kind) {
    if (access.phase < standing.launch_first_phase) return false;
    if (access.phase < standing.block_first_phase) return kind == Kind::Device;
    if (access.rank == rank || access.phase < standing.phase) return false;
    bool same_warp = access.rank / 32 == rank / 32 && standing.warp_mask >> access.rank % 32 & 1;
    return !(same_warp && access.phase < standing.warp_phase);
}

[[noreturn]] void race(Access other, Way other_way, Way way, uintptr_t address, ProgramCounter place,
                       Kind kind) {
    bool same_block = other.phase >= standing().block_first_phase;
    say("race in %s at %#zx: %s by thread %u of %s block (%s), %s by %s (%s)",
        kind == Kind::Device ? "device memory" : "shared memory", address, WAYS[other_way], other.rank,
        same_block ? "the same" : "another", line_at(other.offset).c_str(), WAYS[way],
        running_thread().c_str(), line_at(offset_of(place)).c_str());
    give_up();
}

void check_races(uintptr_t address, size_t bytes, Way way, ProgramCounter place, Kind kind) {
    const Standing& now = standing();
    unsigned rank = cuda_cpu::place().rank;
    for (uintptr_t at = address; at < address + bytes; at++) {
        Byte& byte = shadow().at(at, now.launch_first_phase);
        for (Way other_way : {READ, WRITE, ATOMIC}) {
            if (way == other_way && way != WRITE) continue;
            const History& history = byte.histories[other_way];
            for (Access other : {history.last, history.of_other_thread, history.of_other_block}) {
                if (is_unordered(other, rank, now, kind)) race(other, other_way, way, at, place, kind);
            }
        }
        Access access{std::max(now.phase, now.warp_phase), rank, offset_of(place)};
        byte.histories[way].add(access, now);
    }
}

// ---- what is called

// Only threads of kernels are watched, and not what is on their own stacks.
bool is_watched(uintptr_t address) {
    return on_a_stack(reinterpret_cast<uintptr_t>(__builtin_frame_address(0))) && !on_a_stack(address);
}

void watch(const volatile void* pointer, size_t bytes, Way way, ProgramCounter place, bool races) {
    auto address = reinterpret_cast<uintptr_t>(pointer);
    if (!is_watched(address)) return;
    Kind kind = check_bounds(address, bytes, place);
    if (races) check_races(address, bytes, way, place, kind);
}

// Atomics are called through the header, so whether races are looked for has to be known here.
bool races_are_watched = false;

}  // namespace

void note_atomic(const volatile void* address, size_t bytes, ProgramCounter place) {
    watch(address, bytes, ATOMIC, place, races_are_watched);
}

}  // namespace cuda_cpu

using namespace cuda_cpu;

#define HOOK(name, bytes, way, races) \
    extern "C" void name(const void* address) { \
        watch(address, bytes, way, __builtin_return_address(0), races); \
    }
#define HOOK_OF_ANY_SIZE(name, way, races) \
    extern "C" void name(const void* address, size_t bytes) { \
        watch(address, bytes, way, __builtin_return_address(0), races); \
    }

// ---- -fsanitize=thread

#define THREAD_HOOKS(bytes) \
    HOOK(__tsan_read##bytes, bytes, READ, true) \
    HOOK(__tsan_write##bytes, bytes, WRITE, true) \
    HOOK(__tsan_unaligned_read##bytes, bytes, READ, true) \
    HOOK(__tsan_unaligned_write##bytes, bytes, WRITE, true)
THREAD_HOOKS(1)
THREAD_HOOKS(2)
THREAD_HOOKS(4)
THREAD_HOOKS(8)
THREAD_HOOKS(16)
HOOK_OF_ANY_SIZE(__tsan_read_range, READ, true)
HOOK_OF_ANY_SIZE(__tsan_write_range, WRITE, true)
extern "C" void __tsan_init() { races_are_watched = true; }

// ---- -fsanitize=kernel-address

#define ADDRESS_HOOKS(bytes) \
    HOOK(__asan_load##bytes##_noabort, bytes, READ, false) \
    HOOK(__asan_store##bytes##_noabort, bytes, WRITE, false)
ADDRESS_HOOKS(1)
ADDRESS_HOOKS(2)
ADDRESS_HOOKS(4)
ADDRESS_HOOKS(8)
ADDRESS_HOOKS(16)
HOOK_OF_ANY_SIZE(__asan_loadN_noabort, READ, false)
HOOK_OF_ANY_SIZE(__asan_storeN_noabort, WRITE, false)

extern "C" void __asan_register_globals(const Variable* first, size_t count) {
    variables().insert(variables().end(), first, first + count);
    std::ranges::sort(variables(), {}, &Variable::begin);
}
extern "C" void __asan_unregister_globals(const Variable*, size_t) {}
extern "C" void __asan_before_dynamic_init(const char*) {}
extern "C" void __asan_after_dynamic_init() {}
extern "C" void __asan_handle_no_return() {}

// ---- -fsanitize=bounds: indices of arrays, wherever they are

struct SourceLine {
    const char* file;
    unsigned line, column;
};

extern "C" void __ubsan_handle_out_of_bounds(const SourceLine* at, size_t index) {
    say("out of bounds: index %zu of an array (%s:%u; %s)", index, at->file, at->line,
        running_thread().c_str());
    give_up();
}
