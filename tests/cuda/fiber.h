// Stacks for fibers, and the switch from one to another.
//
// A stack is 128 KiB, of which the first page is a guard. Fibers begin at different depths: with the same
// depth on all, their frames would compete for the same few sets of the caches, which costs more than all
// else in a barrier.
#pragma once

#include "cuda_cpu.h"

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace cuda_cpu {

// What a fiber that does not run needs to go on.
struct Suspended {
#if defined(__x86_64__)
    void* stack_pointer = nullptr;
#else
    ucontext_t registers;
#endif
};

struct Stack {
    unsigned number = 0;
    bool prepared = false;
    Suspended suspended;
};

// Reserves the row of all stacks. Called once.
void reserve_stacks(unsigned count);

// Makes a fiber that begins with `entry`, which must not return.
void prepare(Stack& stack, void (*entry)());

// Suspends the running fiber and goes on with another.
//
// No call and no return: the processor predicts where returns go, and would be wrong for every switch. What
// the compiler keeps in registers it saves itself, since all of them are named as lost but for two, which it
// cannot do without. Compiled with -mno-red-zone, for what is pushed here.
#if defined(__x86_64__)
[[gnu::always_inline]] inline void switch_fibers(Suspended& from, const Suspended& to) {
    void** suspended = &from.stack_pointer;
    void* resumed = to.stack_pointer;
    asm volatile(R"(
        pushq %%rbp
        pushq %%rbx
        leaq 1f(%%rip), %%rax
        pushq %%rax
        movq %%rsp, (%0)
        movq %1, %%rsp
        popq %%rax
        jmpq *%%rax
    1:
        popq %%rbx
        popq %%rbp
    )"
                 : "+r"(suspended), "+r"(resumed)
                 :
                 : "rax", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
                   "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",
                   "xmm11", "xmm12", "xmm13", "xmm14", "xmm15", "memory", "cc");
}
#else
inline void switch_fibers(Suspended& from, const Suspended& to) {
    swapcontext(&from.registers, &to.registers);
}
#endif

}  // namespace cuda_cpu
