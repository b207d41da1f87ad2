// How the engine and the driver tell what is wrong: one line on stderr, and the end of the process where
// nothing can be trusted any more.
#pragma once

namespace cuda_cpu {

// A line on stderr that begins with `cuda_cpu: `.
[[gnu::format(printf, 1, 2)]] void say(const char* format, ...);

// Ends the process at once with the code of an abort, 134. No destructor runs: the memory is not to be
// trusted.
[[noreturn]] void give_up();

}  // namespace cuda_cpu
