// What the environment asks of the driver. Read once, at the first call.
#pragma once

#include <cstdint>
#include <string>

namespace cuda_cpu {

struct Settings {
    uint64_t seed;               // FAKE_CUDA_SEED: the order of the streams, and of the threads in a block
    uint64_t fail_call;          // FAKE_CUDA_FAIL_CALL: this call fails, counted from cuInit as 1; 0 is none
    uint64_t lost_after;         // FAKE_CUDA_LOST_AFTER: this call and all later ones fail; 0 is none
    uint64_t at_call;            // FAKE_CUDA_AT_CALL: before this call FAKE_CUDA_COMMAND is run; 0 is none
    std::string command;         // FAKE_CUDA_COMMAND: a shell line that disturbs the program
    int fail_code;               // FAKE_CUDA_FAIL_CODE: with this code, as what is refused; 0 for the one that suits
    uint64_t memory_bytes;       // FAKE_CUDA_MEMORY: of each device
    uint64_t host_memory_bytes;  // FAKE_CUDA_HOST_MEMORY: that may be pinned
    int devices;                 // FAKE_CUDA_DEVICES
    int silent;                  // FAKE_CUDA_SILENT: this device does not tell its name
    int closed;                  // FAKE_CUDA_CLOSED: this device cannot be opened
    int version;                 // FAKE_CUDA_VERSION: of the driver, 12040 for 12.4
    int capability;              // FAKE_CUDA_CAPABILITY: 75 for 7.5
    uint64_t ignore_waits;       // FAKE_CUDA_IGNORE_WAITS: cuStreamWaitEvent does nothing, ever (1), or every
                                 // second time, from the first (2) or the second (3) on; or cuEventSynchronize (4)
    std::string count_file;      // FAKE_CUDA_COUNT_FILE: gets the number of calls when the process ends
    std::string peak_file;       // FAKE_CUDA_PEAK_FILE: gets the most bytes of the first device that were in use
    std::string call_log;        // FAKE_CUDA_CALL_LOG: gets a line for each call, with the number of its thread
    std::string launch_log;      // FAKE_CUDA_LAUNCH_LOG: gets a line for each launch
    std::string conflicts;       // FAKE_CUDA_CONFLICTS: gets a line for each launch: the kernel, its atomic
                                 // instructions in shared memory, their lanes, and passes (see conflicts.h)
    std::string images;          // FAKE_CUDA_IMAGES: a folder that gets the image of each module, 1.ptx, 2.ptx, …
    std::string refused;         // FAKE_CUDA_REFUSED: an image with this entry cannot be compiled
    uint64_t load_ms;            // FAKE_CUDA_LOAD_MS: what compiling an image takes at least
};

const Settings& settings();

}  // namespace cuda_cpu
