// A libcuda.so.1 for machines without a GPU: the driver's calls, over the streams, the memory and the engine
// beside.
//
// It is stricter than a driver: each host thread needs a current context, copies have to lie within one
// allocation, and the handles have to be alive. settings.h tells how calls are made to fail.
#include "engine.h"
#include "memory.h"
#include "report.h"
#include "settings.h"
#include "streams.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <pthread.h>
#include <set>
#include <source_location>
#include <string>
#include <thread>

#define API extern "C" __attribute__((visibility("default"))) int

namespace {

using namespace cuda_cpu;
using Address = unsigned long long;

enum Result : int {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    DEVICE_UNAVAILABLE = 46,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    INVALID_PTX = 218,
    INVALID_HANDLE = 400,
    NOT_FOUND = 500,
    NOT_READY = 600,
    ILLEGAL_ADDRESS = 700,
    LAUNCH_OUT_OF_RESOURCES = 701,
    LAUNCH_FAILED = 719,
    UNKNOWN = 999,
};

struct ErrorText {
    int code;
    const char *name, *text;
};
constexpr ErrorText ERRORS[] = {
    {SUCCESS, "CUDA_SUCCESS", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {DEVICE_UNAVAILABLE, "CUDA_ERROR_DEVICE_UNAVAILABLE",
     "CUDA-capable device(s) is/are busy or unavailable"},
    {NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {INVALID_IMAGE, "CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {209, "CUDA_ERROR_NO_BINARY_FOR_GPU", "no kernel image is available for execution on the device"},
    {INVALID_PTX, "CUDA_ERROR_INVALID_PTX", "a PTX JIT compilation failed"},
    {221, "CUDA_ERROR_JIT_COMPILER_NOT_FOUND", "PTX JIT compiler library not found"},
    {223, "CUDA_ERROR_JIT_COMPILATION_DISABLED", "PTX JIT compilation was disabled"},
    {222, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
     "the provided PTX was compiled with an unsupported toolchain."},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {NOT_FOUND, "CUDA_ERROR_NOT_FOUND", "named symbol not found"},
    {NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {ILLEGAL_ADDRESS, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {LAUNCH_OUT_OF_RESOURCES, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES",
     "too many resources requested for launch"},
    {LAUNCH_FAILED, "CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"},
    {UNKNOWN, "CUDA_ERROR_UNKNOWN", "unknown error"},
};

struct Device {
    int number;
    std::atomic<unsigned> retained{0};
};

// A live handle, or not: what a program passes in is looked up before it is followed.
template <class T> class Handles {
    std::mutex mutex;
    std::set<T*> alive;

public:
    T* add(T* handle) {
        std::lock_guard lock(mutex);
        alive.insert(handle);
        return handle;
    }
    bool has(T* handle) {
        std::lock_guard lock(mutex);
        return alive.contains(handle);
    }
    bool remove(T* handle) {
        std::lock_guard lock(mutex);
        return alive.erase(handle) != 0;
    }
};

struct Module {
    std::string image;
    bool has(const std::string& entry) const { return image.find(".entry " + entry + "(") != image.npos; }
};

constexpr int DEVICES_MAX = 8;

struct Driver {
    std::array<Device, DEVICES_MAX> devices;
    Scheduler streams{settings().seed};
    Handles<Event> events;
    Handles<Module> modules;
    pthread_key_t current_context;
    std::mutex log;

    Driver() {
        for (int number = 0; number < DEVICES_MAX; number++)
            devices[static_cast<size_t>(number)].number = number;
        // Not thread_local: that storage is the shared memory of kernels here.
        pthread_key_create(&current_context, nullptr);
    }
    Device* current() { return static_cast<Device*>(pthread_getspecific(current_context)); }
};

// Never destroyed: other threads may still call when the process ends.
Driver& driver() {
    static Driver& driver = *new Driver;
    return driver;
}

// ---- what happens around each call

std::atomic<bool> initialized{false};
std::atomic<uint64_t> call_count{0};

using Where = std::source_location;

// A line for a call: the number of the host thread, and the function.
void log_call(const Where& where) {
    const std::string& path = settings().call_log;
    if (path.empty()) return;
    // `int cuInit(unsigned int)`
    std::string function = where.function_name();
    function.erase(function.find('('));
    function.erase(0, function.rfind(' ') + 1);
    std::lock_guard lock(driver().log);
    static std::map<pthread_t, size_t> threads;
    size_t thread = threads.try_emplace(pthread_self(), threads.size()).first->second;
    if (FILE* file = std::fopen(path.c_str(), "a")) {
        std::fprintf(file, "%zu %s\n", thread, function.c_str());
        std::fclose(file);
    }
}

// The failure that the settings ask for at this call; 0 for none.
int planned_failure(const Where& where) {
    const Settings& wanted = settings();
    uint64_t call = ++call_count;
    log_call(where);
    if (call == wanted.at_call && std::system(wanted.command.c_str()) != 0) {
        say("FAKE_CUDA_COMMAND failed: %s", wanted.command.c_str());
        give_up();
    }
    if (call == wanted.fail_call) return wanted.fail_code ? wanted.fail_code : UNKNOWN;
    if (wanted.lost_after && call >= wanted.lost_after) {
        return wanted.fail_code ? wanted.fail_code : LAUNCH_FAILED;
    }
    return SUCCESS;
}

template <class Body> int call(Body body, Where where = Where::current()) {
    if (!initialized) return NOT_INITIALIZED;
    if (int failure = planned_failure(where)) return failure;
    return body();
}

// A call that needs a device that works, and a context on this host thread. What the device suffered
// meanwhile is reported by the call that waited for it.
template <class Body> int call_in_context(Body body, Where where = Where::current()) {
    auto in_context = [&]() -> int {
        Device* device = driver().current();
        if (!device) return INVALID_CONTEXT;
        if (int lost = driver().streams.lost()) return lost;
        int code = body(*device);
        if (int lost = driver().streams.lost()) return lost;
        return code;
    };
    return call(in_context, where);
}

template <class Body> int call_with_stream(void* handle, Body body, Where where = Where::current()) {
    auto with_stream = [&](Device&) -> int {
        Stream* stream = driver().streams.find(handle);
        return stream ? body(*stream) : static_cast<int>(INVALID_HANDLE);
    };
    return call_in_context(with_stream, where);
}

template <class Body> int call_with_event(Event* event, Body body, Where where = Where::current()) {
    auto with_event = [&](Device&) -> int {
        return driver().events.has(event) ? body(*event) : static_cast<int>(INVALID_HANDLE);
    };
    return call_in_context(with_event, where);
}

int device_count() { return std::min(settings().devices, DEVICES_MAX); }
bool is_device(int device) { return device >= 0 && device < device_count(); }

__attribute__((destructor)) void end_of_process() {
    if (!initialized) return;
    memory().check_all();
    auto leave = [](const std::string& path, uint64_t number) {
        FILE* file = path.empty() ? nullptr : std::fopen(path.c_str(), "w");
        if (!file) return;
        std::fprintf(file, "%" PRIu64 "\n", number);
        std::fclose(file);
    };
    leave(settings().count_file, call_count);
    leave(settings().peak_file, memory().most_used_bytes(0));
}

// ---- copies

// Whether a copy may touch these bytes: they lie within one allocation of the device.
bool on_device(const char* call, Address address, size_t bytes) {
    Allocation found;
    if (!memory().find(address, found) || found.owner == HOST) {
        say("%s: no device memory at %#llx", call, address);
        return false;
    }
    if (found.holds(address, bytes)) return true;
    say("%s: %zu bytes at offset %llu of an allocation of %zu bytes", call, bytes,
        address - static_cast<Address>(found.begin), found.bytes);
    return false;
}

enum class HostMemory { Pageable, Pinned, Wrong };

HostMemory host_memory(const char* call, const void* pointer, size_t bytes) {
    Allocation found;
    auto address = reinterpret_cast<uintptr_t>(pointer);
    if (!memory().find(address, found)) return HostMemory::Pageable;
    if (found.owner == HOST && found.holds(address, bytes)) return HostMemory::Pinned;
    say("%s: %zu bytes of host memory at offset %zu of an allocation of %zu bytes", call, bytes,
        address - found.begin, found.bytes);
    return HostMemory::Wrong;
}

// Pinned memory is read when the copy is done, pageable memory at the call.
int copy_to_device(const char* call, Stream& stream, Address to, const void* from, size_t bytes) {
    HostMemory source = host_memory(call, from, bytes);
    if (source == HostMemory::Wrong || !on_device(call, to, bytes)) return INVALID_VALUE;
    auto* target = reinterpret_cast<void*>(to);
    if (source == HostMemory::Pinned) {
        driver().streams.enqueue(stream, [=] { return std::memcpy(target, from, bytes), SUCCESS; });
    } else {
        auto* begin = static_cast<const char*>(from);
        driver().streams.enqueue(stream, [=, kept = std::vector<char>(begin, begin + bytes)] {
            return std::memcpy(target, kept.data(), bytes), SUCCESS;
        });
    }
    return SUCCESS;
}

// A copy to pageable memory is over when the call returns, as in CUDA.
int copy_to_host(const char* call, Stream& stream, void* to, Address from, size_t bytes) {
    HostMemory target = host_memory(call, to, bytes);
    if (target == HostMemory::Wrong || !on_device(call, from, bytes)) return INVALID_VALUE;
    auto* source = reinterpret_cast<const void*>(from);
    auto mark = driver().streams.enqueue(stream, [=] { return std::memcpy(to, source, bytes), SUCCESS; });
    if (target == HostMemory::Pageable) driver().streams.finish(mark);
    return SUCCESS;
}

int copy_on_device(const char* call, Stream& stream, Address to, Address from, size_t bytes) {
    if (!on_device(call, to, bytes) || !on_device(call, from, bytes)) return INVALID_VALUE;
    driver().streams.enqueue(stream, [=] {
        return std::memmove(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), bytes), SUCCESS;
    });
    return SUCCESS;
}

template <class T> int fill(const char* call, Stream& stream, Address to, T value, size_t count) {
    if (to % sizeof(T) || !on_device(call, to, count * sizeof(T))) return INVALID_VALUE;
    driver().streams.enqueue(stream,
                             [=] { return std::fill_n(reinterpret_cast<T*>(to), count, value), SUCCESS; });
    return SUCCESS;
}

// After a call on the default stream that has to be over when it returns.
int finish_default_stream(int code) {
    Scheduler& streams = driver().streams;
    if (code == SUCCESS) streams.finish(streams.last_of(*streams.find(nullptr)));
    return code;
}

// ---- launches

// The arguments of a launch, copied at the call.
class Arguments {
    std::vector<std::vector<uint64_t>> values;
    std::vector<void*> pointers;

public:
    Arguments(const Kernel& kernel, void* const* arguments) {
        for (unsigned i = 0; i < kernel.argument_count; i++) {
            values.emplace_back(kernel.argument_bytes[i] / 8 + 1);
            std::memcpy(values.back().data(), arguments[i], kernel.argument_bytes[i]);
        }
        for (auto& value : values) pointers.push_back(value.data());
    }
    void* const* get() const { return pointers.data(); }
};

bool within_limits(dim3 grid, dim3 threads, size_t dynamic_shared_bytes) {
    uint64_t block = uint64_t{threads.x} * threads.y * threads.z;
    uint64_t blocks = uint64_t{grid.x} * grid.y * grid.z;
    return block >= 1 && block <= BLOCK_THREADS_MAX && threads.z <= 64 && blocks >= 1 && blocks < 1u << 31 &&
           grid.y < 65536 && grid.z < 65536 && dynamic_shared_bytes <= 48 << 10;
}

const Kernel* find_kernel(const char* name) {
    const Kernel* kernel = kernels;
    while (kernel && std::strcmp(kernel->name, name)) kernel = kernel->next;
    return kernel;
}

bool is_kernel(const void* function) {
    const Kernel* kernel = kernels;
    while (kernel && kernel != function) kernel = kernel->next;
    return kernel;
}

void log_launch(const Kernel& kernel, dim3 grid, dim3 threads) {
    const std::string& path = settings().launch_log;
    if (path.empty()) return;
    std::lock_guard lock(driver().log);
    if (FILE* file = std::fopen(path.c_str(), "a")) {
        std::fprintf(file, "%s %u %u %u %u %u %u\n", kernel.name, grid.x, grid.y, grid.z, threads.x,
                     threads.y, threads.z);
        std::fclose(file);
    }
}

void log_conflicts(const Kernel& kernel) {
    const std::string& path = settings().conflicts;
    if (path.empty()) return;
    Passes passes = take_passes();
    std::lock_guard lock(driver().log);
    if (FILE* file = std::fopen(path.c_str(), "a")) {
        std::fprintf(file, "%s %" PRIu64 " %" PRIu64 " %" PRIu64 "\n", kernel.name, passes.instructions,
                     passes.lanes, passes.passes);
        std::fclose(file);
    }
}

int launch(Stream& stream, const Kernel& kernel, dim3 grid, dim3 threads, size_t dynamic_shared_bytes,
           void* const* arguments) {
    log_launch(kernel, grid, threads);
    auto kept = std::make_shared<Arguments>(kernel, arguments);
    driver().streams.enqueue(stream, [=, &kernel] {
        Launch launch{&kernel, kept->get(), grid, threads, dynamic_shared_bytes, settings().seed};
        conflicts_wanted = !settings().conflicts.empty();
        bool succeeded = run(launch);
        log_conflicts(kernel);
        return succeeded ? SUCCESS : LAUNCH_FAILED;
    });
    return SUCCESS;
}

}  // namespace

// ---- the driver and its devices

API cuInit(unsigned flags) {
    initialized = true;
    return call([&] { return flags ? INVALID_VALUE : settings().devices ? SUCCESS : NO_DEVICE; });
}

// The one call that may come before cuInit; then it is not counted.
API cuDriverGetVersion(int* version) {
    if (initialized) {
        if (int failure = planned_failure(Where::current())) return failure;
    }
    *version = settings().version;
    return SUCCESS;
}

API cuDeviceGetCount(int* count) {
    return call([&] { return *count = device_count(), SUCCESS; });
}

API cuDeviceGet(int* device, int ordinal) {
    return call([&] { return is_device(ordinal) ? (*device = ordinal, SUCCESS) : INVALID_DEVICE; });
}

API cuDeviceGetName(char* name, int bytes, int device) {
    return call([&] {
        if (!is_device(device)) return INVALID_DEVICE;
        if (device == settings().silent) return UNKNOWN;
        std::snprintf(name, static_cast<size_t>(bytes), "CPU as a CUDA device");
        return SUCCESS;
    });
}

static int get_uuid(unsigned char* uuid, int device) {
    return call([&] {
        if (!is_device(device)) return INVALID_DEVICE;
        std::memset(uuid, 0x11 * (device + 1), 16);
        return SUCCESS;
    });
}
API cuDeviceGetUuid(unsigned char* uuid, int device) { return get_uuid(uuid, device); }
API cuDeviceGetUuid_v2(unsigned char* uuid, int device) { return get_uuid(uuid, device); }

API cuDeviceTotalMem_v2(size_t* bytes, int device) {
    return call(
        [&] { return is_device(device) ? (*bytes = settings().memory_bytes, SUCCESS) : INVALID_DEVICE; });
}

static int attribute(int which) {
    switch (which) {
        case 1: return BLOCK_THREADS_MAX;  // MAX_THREADS_PER_BLOCK
        case 2:
        case 3: return 1024;        // MAX_BLOCK_DIM_X, _Y
        case 4: return 64;          // MAX_BLOCK_DIM_Z
        case 5: return 0x7fffffff;  // MAX_GRID_DIM_X
        case 6:
        case 7: return 65535;                        // MAX_GRID_DIM_Y, _Z
        case 8: return 48 << 10;                     // MAX_SHARED_MEMORY_PER_BLOCK
        case 9: return 64 << 10;                     // TOTAL_CONSTANT_MEMORY
        case 10: return 32;                          // WARP_SIZE
        case 12: return 65536;                       // MAX_REGISTERS_PER_BLOCK
        case 13: return 1000000;                     // CLOCK_RATE, kHz
        case 16: return 2;                           // MULTIPROCESSOR_COUNT
        case 19: return 1;                           // CAN_MAP_HOST_MEMORY
        case 31: return 1;                           // CONCURRENT_KERNELS
        case 36: return 1000000;                     // MEMORY_CLOCK_RATE, kHz
        case 37: return 128;                         // GLOBAL_MEMORY_BUS_WIDTH
        case 38: return 4 << 20;                     // L2_CACHE_SIZE
        case 39: return 2048;                        // MAX_THREADS_PER_MULTIPROCESSOR
        case 40: return 2;                           // ASYNC_ENGINE_COUNT
        case 41: return 1;                           // UNIFIED_ADDRESSING
        case 75: return settings().capability / 10;  // COMPUTE_CAPABILITY_MAJOR
        case 76: return settings().capability % 10;  // COMPUTE_CAPABILITY_MINOR
        case 81: return 96 << 10;                    // MAX_SHARED_MEMORY_PER_MULTIPROCESSOR
        case 82: return 65536;                       // MAX_REGISTERS_PER_MULTIPROCESSOR
        case 97: return 48 << 10;                    // MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
        case 106: return 32;                         // MAX_BLOCKS_PER_MULTIPROCESSOR
        default: return 0;                           // MEMORY_POOLS_SUPPORTED among them
    }
}

API cuDeviceGetAttribute(int* value, int which, int device) {
    return call([&] { return is_device(device) ? (*value = attribute(which), SUCCESS) : INVALID_DEVICE; });
}

// ---- contexts: a device is its own

API cuDevicePrimaryCtxRetain(Device** context, int device) {
    return call([&] {
        if (!is_device(device)) return INVALID_DEVICE;
        if (device == settings().closed) return DEVICE_UNAVAILABLE;
        *context = &driver().devices[static_cast<size_t>(device)];
        (*context)->retained++;
        return SUCCESS;
    });
}

API cuDevicePrimaryCtxRelease_v2(int device) {
    return call([&] {
        if (!is_device(device)) return INVALID_DEVICE;
        Device& context = driver().devices[static_cast<size_t>(device)];
        if (context.retained == 0) return INVALID_CONTEXT;
        if (--context.retained == 0) driver().streams.finish_all();
        return SUCCESS;
    });
}

API cuCtxSetCurrent(Device* context) {
    return call([&] {
        if (context && context->retained == 0) return INVALID_CONTEXT;
        pthread_setspecific(driver().current_context, context);
        return SUCCESS;
    });
}

API cuCtxGetCurrent(Device** context) {
    return call([&] { return *context = driver().current(), SUCCESS; });
}

API cuCtxGetDevice(int* device) {
    return call_in_context([&](Device& current) { return *device = current.number, SUCCESS; });
}

API cuCtxSynchronize() {
    return call_in_context([](Device&) { return driver().streams.finish_all(), SUCCESS; });
}

API cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    return call_in_context([&](Device&) { return *least = 0, *greatest = -5, SUCCESS; });
}

// ---- memory

API cuMemGetAddressRange_v2(Address* begin, size_t* bytes, Address address) {
    return call_in_context([&](Device&) {
        Allocation found;
        if (!memory().find(address, found) || found.owner == HOST) return INVALID_VALUE;
        return *begin = found.begin, *bytes = found.bytes, SUCCESS;
    });
}

API cuMemGetInfo_v2(size_t* free, size_t* total) {
    return call_in_context([&](Device& device) {
        *total = settings().memory_bytes;
        *free = *total - memory().used_bytes(device.number);
        return SUCCESS;
    });
}

API cuMemAlloc_v2(Address* address, size_t bytes) {
    return call_in_context([&](Device& device) {
        if (bytes == 0) return INVALID_VALUE;
        *address = memory().allocate(device.number, bytes, settings().memory_bytes);
        return *address ? SUCCESS : OUT_OF_MEMORY;
    });
}

API cuMemHostAlloc(void** pointer, size_t bytes, unsigned) {
    return call_in_context([&](Device&) {
        if (bytes == 0) return INVALID_VALUE;
        *pointer = reinterpret_cast<void*>(memory().allocate(HOST, bytes, settings().host_memory_bytes));
        return *pointer ? SUCCESS : OUT_OF_MEMORY;
    });
}

// Work that is under way may use what is freed, so all of it is done first.
static int free_memory(uintptr_t address, bool of_host) {
    return call_in_context([&](Device&) {
        if (!address) return SUCCESS;
        driver().streams.finish_all();
        return memory().free(address, of_host) ? SUCCESS : INVALID_VALUE;
    });
}
API cuMemFree_v2(Address address) { return free_memory(address, false); }
API cuMemFreeHost(void* pointer) { return free_memory(reinterpret_cast<uintptr_t>(pointer), true); }

API cuMemcpyHtoDAsync_v2(Address to, const void* from, size_t bytes, void* handle) {
    return call_with_stream(
        handle, [&](Stream& stream) { return copy_to_device("cuMemcpyHtoDAsync", stream, to, from, bytes); });
}

API cuMemcpyDtoHAsync_v2(void* to, Address from, size_t bytes, void* handle) {
    return call_with_stream(
        handle, [&](Stream& stream) { return copy_to_host("cuMemcpyDtoHAsync", stream, to, from, bytes); });
}

API cuMemcpyDtoDAsync_v2(Address to, Address from, size_t bytes, void* handle) {
    return call_with_stream(
        handle, [&](Stream& stream) { return copy_on_device("cuMemcpyDtoDAsync", stream, to, from, bytes); });
}

API cuMemcpyHtoD_v2(Address to, const void* from, size_t bytes) {
    return call_with_stream(nullptr, [&](Stream& stream) {
        return finish_default_stream(copy_to_device("cuMemcpyHtoD", stream, to, from, bytes));
    });
}

API cuMemcpyDtoH_v2(void* to, Address from, size_t bytes) {
    return call_with_stream(nullptr, [&](Stream& stream) {
        return finish_default_stream(copy_to_host("cuMemcpyDtoH", stream, to, from, bytes));
    });
}

API cuMemcpyDtoD_v2(Address to, Address from, size_t bytes) {
    return call_with_stream(nullptr, [&](Stream& stream) {
        return finish_default_stream(copy_on_device("cuMemcpyDtoD", stream, to, from, bytes));
    });
}

API cuMemsetD8Async(Address to, unsigned char value, size_t count, void* handle) {
    return call_with_stream(
        handle, [&](Stream& stream) { return fill("cuMemsetD8Async", stream, to, value, count); });
}

API cuMemsetD32Async(Address to, unsigned value, size_t count, void* handle) {
    return call_with_stream(
        handle, [&](Stream& stream) { return fill("cuMemsetD32Async", stream, to, value, count); });
}

API cuMemsetD8_v2(Address to, unsigned char value, size_t count) {
    return call_with_stream(nullptr, [&](Stream& stream) {
        return finish_default_stream(fill("cuMemsetD8", stream, to, value, count));
    });
}

API cuMemsetD32_v2(Address to, unsigned value, size_t count) {
    return call_with_stream(nullptr, [&](Stream& stream) {
        return finish_default_stream(fill("cuMemsetD32", stream, to, value, count));
    });
}

// ---- streams and events

constexpr unsigned STREAM_NON_BLOCKING = 1, EVENT_DISABLE_TIMING = 2;

API cuStreamCreate(Stream** stream, unsigned flags) {
    return call_in_context([&](Device&) {
        *stream = driver().streams.create(!(flags & STREAM_NON_BLOCKING));
        return SUCCESS;
    });
}

API cuStreamCreateWithPriority(Stream** stream, unsigned flags, int) {
    return call_in_context([&](Device&) {
        *stream = driver().streams.create(!(flags & STREAM_NON_BLOCKING));
        return SUCCESS;
    });
}

API cuStreamDestroy_v2(void* handle) {
    return call_with_stream(handle, [](Stream& stream) {
        if (&stream == driver().streams.find(nullptr)) return INVALID_HANDLE;
        return driver().streams.destroy(stream), SUCCESS;
    });
}

API cuStreamSynchronize(void* handle) {
    return call_with_stream(handle, [](Stream& stream) {
        Scheduler& streams = driver().streams;
        return streams.finish(streams.last_of(stream)), SUCCESS;
    });
}

API cuStreamQuery(void* handle) {
    return call_with_stream(handle, [](Stream& stream) {
        Scheduler& streams = driver().streams;
        return streams.poll(streams.last_of(stream)) ? SUCCESS : NOT_READY;
    });
}

API cuStreamIsCapturing(void* handle, int* status) {
    return call_with_stream(handle, [&](Stream&) { return *status = 0, SUCCESS; });
}

API cuStreamWaitEvent(void* handle, Event* event, unsigned) {
    return call_with_stream(handle, [&](Stream& stream) {
        if (!driver().events.has(event)) return INVALID_HANDLE;
        static std::atomic<uint64_t> waits{0};
        uint64_t ignored = settings().ignore_waits, kind = 2 + waits++ % 2;
        if (ignored != 1 && ignored != kind) driver().streams.wait(stream, *event);
        return SUCCESS;
    });
}

API cuLaunchHostFunc(void* handle, void (*function)(void*), void* data) {
    return call_with_stream(handle, [&](Stream& stream) {
        driver().streams.enqueue(stream, [=] { return function(data), SUCCESS; });
        return SUCCESS;
    });
}

API cuEventCreate(Event** event, unsigned flags) {
    return call_in_context([&](Device&) {
        *event = driver().events.add(new Event{!(flags & EVENT_DISABLE_TIMING)});
        return SUCCESS;
    });
}

API cuEventDestroy_v2(Event* event) {
    return call_in_context([&](Device&) {
        if (!driver().events.remove(event)) return INVALID_HANDLE;
        return delete event, SUCCESS;
    });
}

API cuEventRecord(Event* event, void* handle) {
    return call_with_stream(handle, [&](Stream& stream) {
        if (!driver().events.has(event)) return INVALID_HANDLE;
        return driver().streams.record(*event, stream), SUCCESS;
    });
}

API cuEventQuery(Event* event) {
    return call_with_event(event, [](Event& event) {
        Scheduler& streams = driver().streams;
        return streams.poll(streams.last_of(event)) ? SUCCESS : NOT_READY;
    });
}

API cuEventSynchronize(Event* event) {
    return call_with_event(event, [](Event& event) {
        Scheduler& streams = driver().streams;
        if (settings().ignore_waits != 4) streams.finish(streams.last_of(event));
        return SUCCESS;
    });
}

static int elapsed(float* milliseconds, Event* from, Event* to) {
    return call_in_context([&](Device&) {
        Scheduler& streams = driver().streams;
        for (Event* event : {from, to}) {
            if (!driver().events.has(event) || !event->timed || !streams.last_of(*event))
                return INVALID_HANDLE;
        }
        return streams.elapsed(*from, *to, *milliseconds) ? SUCCESS : NOT_READY;
    });
}
API cuEventElapsedTime(float* milliseconds, Event* from, Event* to) {
    return elapsed(milliseconds, from, to);
}
API cuEventElapsedTime_v2(float* milliseconds, Event* from, Event* to) {
    return elapsed(milliseconds, from, to);
}

// ---- modules and kernels: an image says which kernels a module has, and what they do was compiled in

static void keep_image(const std::string& image) {
    const std::string& folder = settings().images;
    if (folder.empty()) return;
    static std::atomic<int> images{0};
    std::string path = folder + "/" + std::to_string(++images) + ".ptx";
    FILE* file = std::fopen(path.c_str(), "w");
    if (!file || std::fwrite(image.data(), 1, image.size(), file) != image.size() || std::fclose(file)) {
        say("FAKE_CUDA_IMAGES: cannot write %s", path.c_str());
        give_up();
    }
}

// Where a compiler writes what is wrong.
struct Log {
    char* text = nullptr;
    size_t bytes = 0;

    Log(unsigned count, const int* options, void* const* values) {
        constexpr int ERROR_LOG_BUFFER = 5, ERROR_LOG_BUFFER_SIZE_BYTES = 6;
        for (unsigned i = 0; i < count; i++) {
            if (options[i] == ERROR_LOG_BUFFER) text = static_cast<char*>(values[i]);
            if (options[i] == ERROR_LOG_BUFFER_SIZE_BYTES) bytes = reinterpret_cast<size_t>(values[i]);
        }
    }
};

static int load_module(Module** module, const char* image, const Log& log) {
    return call_in_context([&](Device&) -> int {
        if (!image) return INVALID_VALUE;
        auto loaded = std::make_unique<Module>(Module{image});
        keep_image(loaded->image);
        std::this_thread::sleep_for(std::chrono::milliseconds(settings().load_ms));
        if (!settings().refused.empty() && loaded->has(settings().refused)) {
            if (settings().fail_code) return settings().fail_code;
            if (log.text) std::snprintf(log.text, log.bytes, "ptxas application ptx input, line 5; fatal\n");
            return INVALID_PTX;
        }
        return *module = driver().modules.add(loaded.release()), SUCCESS;
    });
}
API cuModuleLoadData(Module** module, const char* image) { return load_module(module, image, {0, {}, {}}); }
API cuModuleLoadDataEx(Module** module, const char* image, unsigned count, int* options, void** values) {
    return load_module(module, image, {count, options, values});
}

API cuModuleUnload(Module* module) {
    return call_in_context([&](Device&) {
        if (!driver().modules.remove(module)) return INVALID_HANDLE;
        driver().streams.finish_all();
        return delete module, SUCCESS;
    });
}

API cuModuleGetFunction(const Kernel** function, Module* module, const char* name) {
    return call_in_context([&](Device&) {
        if (!driver().modules.has(module)) return INVALID_HANDLE;
        *function = module->has(name) ? find_kernel(name) : nullptr;
        return *function ? SUCCESS : NOT_FOUND;
    });
}

API cuFuncGetAttribute(int* value, int which, const void* function) {
    return call_in_context([&](Device&) {
        if (!is_kernel(function)) return INVALID_HANDLE;
        constexpr int MAX_THREADS_PER_BLOCK = 0, REGISTERS = 4;
        *value = which == MAX_THREADS_PER_BLOCK ? BLOCK_THREADS_MAX : which == REGISTERS ? 32 : 0;
        return SUCCESS;
    });
}

API cuFuncSetAttribute(const void* function, int, int) {
    return call_in_context([&](Device&) { return is_kernel(function) ? SUCCESS : INVALID_HANDLE; });
}

API cuFuncSetCacheConfig(const void* function, int) {
    return call_in_context([&](Device&) { return is_kernel(function) ? SUCCESS : INVALID_HANDLE; });
}

static int active_blocks(int* blocks, const void* function, int block_threads) {
    return call_in_context([&](Device&) {
        if (!is_kernel(function)) return INVALID_HANDLE;
        if (block_threads < 1 || block_threads > static_cast<int>(BLOCK_THREADS_MAX)) return INVALID_VALUE;
        *blocks = std::min(2048 / block_threads, 32);
        return SUCCESS;
    });
}
API cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void* function, int threads, size_t) {
    return active_blocks(blocks, function, threads);
}
API cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void* function, int threads,
                                                         size_t, unsigned) {
    return active_blocks(blocks, function, threads);
}

API cuLaunchKernel(const Kernel* function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                   unsigned block_x, unsigned block_y, unsigned block_z, unsigned dynamic_shared_bytes,
                   void* handle, void** arguments, void** extra) {
    return call_with_stream(handle, [&](Stream& stream) -> int {
        dim3 grid(grid_x, grid_y, grid_z), threads(block_x, block_y, block_z);
        if (!is_kernel(function)) return INVALID_HANDLE;
        if (extra || !within_limits(grid, threads, dynamic_shared_bytes)) return INVALID_VALUE;
        if (function->argument_count && !arguments) return INVALID_VALUE;
        return launch(stream, *function, grid, threads, dynamic_shared_bytes, arguments);
    });
}

// ---- the texts of errors: not counted among the calls, and they never fail by plan

static const ErrorText* find_error(int code) {
    auto* found = std::ranges::find(ERRORS, code, &ErrorText::code);
    return found == std::end(ERRORS) ? nullptr : found;
}

API cuGetErrorName(int code, const char** name) {
    const ErrorText* error = find_error(code);
    *name = error ? error->name : nullptr;
    return error ? SUCCESS : INVALID_VALUE;
}

API cuGetErrorString(int code, const char** text) {
    const ErrorText* error = find_error(code);
    *text = error ? error->text : nullptr;
    return error ? SUCCESS : INVALID_VALUE;
}
