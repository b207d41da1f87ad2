// Messages, written in one piece so that those of several threads do not mix.
#include "report.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <unistd.h>

namespace cuda_cpu {

void say(const char* format, ...) {
    char line[1024] = "cuda_cpu: ";
    constexpr int prefix = 10, room = sizeof line - 1;
    va_list arguments;
    va_start(arguments, format);
    int length = prefix + std::vsnprintf(line + prefix, room - prefix, format, arguments);
    va_end(arguments);
    if (length >= room) length = room - 1;
    line[length++] = '\n';
    [[maybe_unused]] ssize_t written = ::write(STDERR_FILENO, line, static_cast<size_t>(length));
}

void give_up() { std::_Exit(134); }

}  // namespace cuda_cpu
