// The environment: what is not a number is refused, since a test that misspells a setting would test nothing.
#include "settings.h"

#include "report.h"

#include <cstdlib>

namespace cuda_cpu {

namespace {

// The number of no device.
constexpr uint64_t NO_DEVICE = 999;

uint64_t number(const char* name, uint64_t otherwise) {
    const char* text = std::getenv(name);
    if (!text || !*text) return otherwise;
    char* end;
    uint64_t value = std::strtoull(text, &end, 10);
    if (*end || *text == '-') {
        say("%s=%s is no number", name, text);
        give_up();
    }
    return value;
}

std::string text(const char* name) {
    const char* text = std::getenv(name);
    return text ? text : "";
}

Settings read() {
    return {
        .seed = number("FAKE_CUDA_SEED", 0),
        .fail_call = number("FAKE_CUDA_FAIL_CALL", 0),
        .lost_after = number("FAKE_CUDA_LOST_AFTER", 0),
        .at_call = number("FAKE_CUDA_AT_CALL", 0),
        .command = text("FAKE_CUDA_COMMAND"),
        .fail_code = static_cast<int>(number("FAKE_CUDA_FAIL_CODE", 0)),
        .memory_bytes = number("FAKE_CUDA_MEMORY", 1 << 30),
        .host_memory_bytes = number("FAKE_CUDA_HOST_MEMORY", 1ull << 40),
        .devices = static_cast<int>(number("FAKE_CUDA_DEVICES", 1)),
        .silent = static_cast<int>(number("FAKE_CUDA_SILENT", NO_DEVICE)),
        .closed = static_cast<int>(number("FAKE_CUDA_CLOSED", NO_DEVICE)),
        .version = static_cast<int>(number("FAKE_CUDA_VERSION", 13000)),
        .capability = static_cast<int>(number("FAKE_CUDA_CAPABILITY", 90)),
        .ignore_waits = number("FAKE_CUDA_IGNORE_WAITS", 0),
        .count_file = text("FAKE_CUDA_COUNT_FILE"),
        .peak_file = text("FAKE_CUDA_PEAK_FILE"),
        .call_log = text("FAKE_CUDA_CALL_LOG"),
        .launch_log = text("FAKE_CUDA_LAUNCH_LOG"),
        .conflicts = text("FAKE_CUDA_CONFLICTS"),
        .images = text("FAKE_CUDA_IMAGES"),
        .refused = text("FAKE_CUDA_REFUSED"),
        .load_ms = number("FAKE_CUDA_LOAD_MS", 0),
    };
}

}  // namespace

const Settings& settings() {
    static const Settings& settings = *new Settings(read());
    return settings;
}

}  // namespace cuda_cpu
