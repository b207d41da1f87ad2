// The row of stacks.
#include "fiber.h"

#include "report.h"

#include <sys/mman.h>

namespace cuda_cpu {

uintptr_t stacks_begin = 0;
const ThreadPlace** place_by_stack = nullptr;

namespace {

constexpr size_t PAGE_BYTES = 4096;
// Fibers begin up to this far below the top of their stacks: pages and lines apart.
constexpr size_t STAGGER_PAGES = 16, STAGGER_LINES = 48, LINE_BYTES = 64;
static_assert(STAGGER_PAGES * PAGE_BYTES + STAGGER_LINES * LINE_BYTES < STACK_BYTES / 2 + PAGE_BYTES);

char* first_byte(const Stack& stack) {
    return reinterpret_cast<char*>(stacks_begin + stack.number * STACK_BYTES);
}

char* set_guard(Stack& stack) {
    char* guard = first_byte(stack);
    mprotect(guard, PAGE_BYTES, PROT_NONE);
    stack.prepared = true;
    return guard;
}

size_t stagger(unsigned number) {
    // 5 lines apart: a frame of a small kernel has two to six lines.
    return number % STAGGER_PAGES * PAGE_BYTES + number * 5 % STAGGER_LINES * LINE_BYTES;
}

}  // namespace

void reserve_stacks(unsigned count) {
    constexpr int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* row = mmap(nullptr, count * STACK_BYTES, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (row == MAP_FAILED) {
        say("no room for %u stacks of %zu bytes", count, STACK_BYTES);
        give_up();
    }
    stacks_begin = reinterpret_cast<uintptr_t>(row);
    place_by_stack = new const ThreadPlace*[count]();
}

#if defined(__x86_64__)

void prepare(Stack& stack, void (*entry)()) {
    char* guard = set_guard(stack);
    auto* top = reinterpret_cast<void**>(guard + STACK_BYTES - stagger(stack.number));
    // As if `entry` had been called: the stack is 8 off a multiple of 16 at its first instruction.
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(entry);
    stack.suspended.stack_pointer = top;
}

#else

void prepare(Stack& stack, void (*entry)()) {
    char* guard = set_guard(stack);
    ucontext_t& registers = stack.suspended.registers;
    getcontext(&registers);
    registers.uc_stack = {guard, 0, STACK_BYTES - stagger(stack.number)};
    registers.uc_link = nullptr;
    makecontext(&registers, entry, 0);
}

#endif

}  // namespace cuda_cpu
