// A program over the driver, as small as can be: `host SCENARIO` ends with 0 if all came out right.
//
// The tests in tests/all/cuda_engine.rs run the scenarios, with different seeds and plans for failures.
#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <map>
#include <string>
#include <thread>
#include <vector>

using Address = unsigned long long;

extern "C" {
int cuInit(unsigned);
int cuDevicePrimaryCtxRetain(void**, int);
int cuCtxSetCurrent(void*);
int cuCtxGetCurrent(void**);
int cuCtxSynchronize();
int cuMemAlloc_v2(Address*, size_t);
int cuMemFree_v2(Address);
int cuMemHostAlloc(void**, size_t, unsigned);
int cuMemFreeHost(void*);
int cuMemcpyHtoD_v2(Address, const void*, size_t);
int cuMemcpyDtoH_v2(void*, Address, size_t);
int cuMemcpyHtoDAsync_v2(Address, const void*, size_t, void*);
int cuMemcpyDtoHAsync_v2(void*, Address, size_t, void*);
int cuMemsetD32Async(Address, unsigned, size_t, void*);
int cuStreamCreate(void**, unsigned);
int cuStreamSynchronize(void*);
int cuStreamWaitEvent(void*, void*, unsigned);
int cuEventCreate(void**, unsigned);
int cuEventRecord(void*, void*);
int cuEventElapsedTime(float*, void*, void*);
int cuEventQuery(void*);
int cuEventSynchronize(void*);
int cuModuleLoadData(void**, const void*);
int cuModuleGetFunction(void**, void*, const char*);
int cuLaunchKernel(void*, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void*, void**,
                   void**);
int cuGetErrorName(int, const char**);
}

namespace {

constexpr unsigned NON_BLOCKING = 1, DISABLE_TIMING = 2;

// Ends the program with the driver's code, so that a test sees which error a failure became.
void check(int code, const char* call) {
    if (code == 0) return;
    const char* name = nullptr;
    cuGetErrorName(code, &name);
    std::printf("%s: %s\n", call, name ? name : std::to_string(code).c_str());
    std::exit(3);
}
#define CHECK(call) check(call, #call)

void expect(bool right, const char* what) {
    if (right) return;
    std::printf("wrong: %s\n", what);
    std::exit(1);
}

void open_device() {
    void* context;
    CHECK(cuInit(0));
    CHECK(cuDevicePrimaryCtxRetain(&context, 0));
    CHECK(cuCtxSetCurrent(context));
}

struct Buffer {
    Address address = 0;
    explicit Buffer(size_t bytes) { CHECK(cuMemAlloc_v2(&address, bytes)); }
    ~Buffer() { CHECK(cuMemFree_v2(address)); }
    Buffer(const Buffer&) = delete;

    template <class T> explicit Buffer(const std::vector<T>& values) : Buffer(values.size() * sizeof(T)) {
        CHECK(cuMemcpyHtoD_v2(address, values.data(), values.size() * sizeof(T)));
    }
    template <class T> std::vector<T> read(size_t count) const {
        std::vector<T> values(count);
        CHECK(cuMemcpyDtoH_v2(values.data(), address, count * sizeof(T)));
        return values;
    }
};

template <class... A>
void launch(const char* name, unsigned grid, unsigned block, void* stream, A... arguments) {
    void *module, *function;
    std::string image = std::string(".visible .entry ") + name + "(\n";
    CHECK(cuModuleLoadData(&module, image.c_str()));
    CHECK(cuModuleGetFunction(&function, module, name));
    void* pointers[] = {&arguments..., nullptr};
    CHECK(cuLaunchKernel(function, grid, 1, 1, block, 1, 1, 0, stream, pointers, nullptr));
}

// Launches a kernel that writes one word for each thread.
std::vector<unsigned> words_of(const char* name, unsigned grid, unsigned block) {
    Buffer output(grid * block * sizeof(unsigned));
    launch(name, grid, block, nullptr, output.address);
    return output.read<unsigned>(grid * block);
}

template <class Wanted> void expect_words(const char* name, unsigned grid, unsigned block, Wanted wanted) {
    std::vector<unsigned> words = words_of(name, grid, block);
    for (unsigned i = 0; i < grid * block; i++) {
        if (words[i] == wanted(i)) continue;
        std::printf("wrong: %s: word %u is %u instead of %u\n", name, i, words[i], wanted(i));
        std::exit(1);
    }
}

// ---- what kernels may do

void barriers() {
    expect_words("reverse", 5, 256, [](unsigned i) { return i / 256 * 256 + 255 - i % 256; });
    expect_words("count_odd", 3, 96, [](unsigned i) { return 48 + i % 3; });
    expect_words("leave_early", 4, 256, [](unsigned i) { return i % 256 < 100 ? 7u : 100u; });
    expect_words("many_barriers", 2, 1024, [](unsigned i) { return i % 1024 + 40; });
}

void warps() {
    expect_words("sum_of_warp", 2, 128, [](unsigned i) { return i / 32 * 32 * 32 + 496; });
    expect_words("shuffles", 1, 64, [](unsigned i) {
        unsigned lane = i % 32, from = i - lane;
        return (from + 3) + 1000 * (from + (lane ^ 5)) + 1000000 * (lane + 4 < 32 ? i + 4 : i);
    });
    expect_words("votes", 1, 32, [](unsigned i) { return 0x55555555u + i; });
    expect_words("halves", 1, 64, [](unsigned i) { return i % 32 < 16 ? 0xffffu : 0xffff0000u; });
    expect_words("same_digit", 1, 32, [](unsigned i) {
        unsigned mask = 0;
        for (unsigned lane = 0; lane < 32; lane++) mask |= (lane % 5 == i % 5) << lane;
        return mask;
    });
}

void atomics() {
    Buffer totals(std::vector<unsigned>(3, 0));
    launch("total", 64, 256, nullptr, totals.address);
    auto sums = totals.read<unsigned>(3);
    expect(sums[0] == 64 * 256 && sums[1] == 255 && sums[2] == 64 * 256 - 1, "atomics on global memory");
    expect_words("histogram", 4, 256, [](unsigned i) { return i % 256 < 16 ? 16u : 0u; });
    expect_words("in_turns", 2, 64, [](unsigned) { return 128u; });
}

void scale() {
    std::vector<uint16_t> values(64 * 128 * 8);
    for (size_t i = 0; i < values.size(); i++) values[i] = static_cast<uint16_t>(0x3f80 + i % 128);
    Buffer input(values), output(values.size() * 2), odd(std::vector<unsigned>(64, 0));
    launch("scale_and_vote", 64, 128, nullptr, input.address, output.address, odd.address, 0x40000000u);
    auto scaled = output.read<uint16_t>(values.size());
    for (size_t i = 0; i < values.size(); i++) expect(scaled[i] == values[i] + 0x80, "twice as much");
}

// ---- streams

// Copies in, computes and copies out on three streams, through two slots that are used again and again.
void pipeline(bool wait_for_kernel, bool wait_for_slot) {
    constexpr unsigned words = 256, rounds = 12, slots = 2;
    void *in, *compute, *out, *copied[slots], *computed[slots], *fetched[slots];
    for (void** stream : {&in, &compute, &out}) CHECK(cuStreamCreate(stream, NON_BLOCKING));
    Buffer device_in(slots * words * 4), device_out(slots * words * 4);
    unsigned *host_in, *host_out;
    CHECK(cuMemHostAlloc(reinterpret_cast<void**>(&host_in), rounds * words * 4, 0));
    CHECK(cuMemHostAlloc(reinterpret_cast<void**>(&host_out), rounds * words * 4, 0));
    for (unsigned i = 0; i < rounds * words; i++) host_in[i] = i;
    for (auto* events : {copied, computed, fetched}) {
        for (unsigned slot = 0; slot < slots; slot++) CHECK(cuEventCreate(&events[slot], 0));
    }
    for (unsigned round = 0; round < rounds; round++) {
        unsigned slot = round % slots;
        Address at_in = device_in.address + slot * words * 4, at_out = device_out.address + slot * words * 4;
        // On the first rounds these events were never recorded, and the waits are none.
        if (wait_for_slot) CHECK(cuStreamWaitEvent(in, computed[slot], 0));
        CHECK(cuMemcpyHtoDAsync_v2(at_in, host_in + round * words, words * 4, in));
        CHECK(cuEventRecord(copied[slot], in));
        CHECK(cuStreamWaitEvent(compute, copied[slot], 0));
        CHECK(cuStreamWaitEvent(compute, fetched[slot], 0));
        launch("add_one", 2, words / 2, compute, at_in, at_out);
        CHECK(cuEventRecord(computed[slot], compute));
        if (wait_for_kernel) CHECK(cuStreamWaitEvent(out, computed[slot], 0));
        CHECK(cuMemcpyDtoHAsync_v2(host_out + round * words, at_out, words * 4, out));
        CHECK(cuEventRecord(fetched[slot], out));
    }
    for (unsigned slot = 0; slot < slots; slot++) CHECK(cuEventSynchronize(fetched[slot]));
    for (unsigned i = 0; i < rounds * words; i++)
        expect(host_out[i] == i + 1, "what came through the pipeline");
    CHECK(cuMemFreeHost(host_in));
    CHECK(cuMemFreeHost(host_out));
}

// A pinned buffer that is written to again before its copy is known to be done.
void reuse(bool wait) {
    void *stream, *copied;
    CHECK(cuStreamCreate(&stream, NON_BLOCKING));
    CHECK(cuEventCreate(&copied, 0));
    Buffer device(8 * 4);
    unsigned* pinned;
    CHECK(cuMemHostAlloc(reinterpret_cast<void**>(&pinned), 4, 0));
    for (unsigned i = 0; i < 8; i++) {
        *pinned = i;
        CHECK(cuMemcpyHtoDAsync_v2(device.address + i * 4, pinned, 4, stream));
        CHECK(cuEventRecord(copied, stream));
        if (!wait) continue;
        int code;
        while ((code = cuEventQuery(copied)) == 600) {}
        CHECK(code);
    }
    auto words = device.read<unsigned>(8);
    CHECK(cuStreamSynchronize(stream));
    words = device.read<unsigned>(8);
    for (unsigned i = 0; i < 8; i++) expect(words[i] == i, "what stood in the pinned buffer at each copy");
    CHECK(cuMemFreeHost(pinned));
}

// Many host threads at once, each with streams of its own.
void host_threads() {
    void* context;
    CHECK(cuCtxGetCurrent(&context));
    std::vector<std::thread> threads;
    for (int i = 0; i < 8; i++) {
        threads.emplace_back([=] {
            CHECK(cuCtxSetCurrent(context));
            pipeline(true, true);
        });
    }
    for (auto& thread : threads) thread.join();
}

void without_context() {
    std::thread([] { Buffer buffer(100); }).join();
}

void events() {
    void *stream, *timed[2], *untimed;
    float milliseconds = -1;
    CHECK(cuStreamCreate(&stream, NON_BLOCKING));
    for (void*& event : timed) CHECK(cuEventCreate(&event, 0));
    CHECK(cuEventCreate(&untimed, DISABLE_TIMING));
    expect(cuEventQuery(timed[0]) == 0, "an event that was never recorded is done");
    expect(cuEventElapsedTime(&milliseconds, timed[0], timed[1]) == 400, "and has no time");
    Buffer words(64 << 20);
    CHECK(cuEventRecord(timed[0], stream));
    CHECK(cuMemsetD32Async(words.address, 1, 16 << 20, stream));
    CHECK(cuEventRecord(timed[1], stream));
    CHECK(cuEventRecord(untimed, stream));
    CHECK(cuEventSynchronize(untimed));
    expect(cuEventElapsedTime(&milliseconds, timed[0], untimed) == 400, "an event without timing");
    CHECK(cuEventElapsedTime(&milliseconds, timed[0], timed[1]));
    expect(milliseconds > 0.1f && milliseconds < 60000, "the time that it takes to fill 64 MiB");
}

void copy_too_far() {
    Buffer buffer(100);
    std::vector<char> bytes(101);
    CHECK(cuMemcpyHtoD_v2(buffer.address, bytes.data(), 101));
}

// The best of many launches: the machine does other things meanwhile.
void speed() {
    constexpr unsigned blocks = 1024, threads = 128, rounds = 60;
    size_t elements = size_t{blocks} * threads * 8;
    Buffer input(elements * 2), output(elements * 2), odd(blocks * 4);
    for (const char* kernel : {"scale_and_vote", "scale_only", "count_keys", "shuffle_only"}) {
        double best = 1e9;
        for (unsigned round = 0; round < rounds; round++) {
            auto from = std::chrono::steady_clock::now();
            launch(kernel, blocks, threads, nullptr, input.address, output.address, odd.address, 0x3f800000u);
            CHECK(cuCtxSynchronize());
            best = std::min(best,
                            std::chrono::duration<double>(std::chrono::steady_clock::now() - from).count());
        }
        std::printf("%-16s %7.1f M elements a second, %6.1f ns a thread\n", kernel,
                    static_cast<double>(elements) / best / 1e6, best * 1e9 / (blocks * threads));
    }
}

const std::map<std::string, std::function<void()>> SCENARIOS = {
    {"barriers", barriers},
    {"warps", warps},
    {"atomics", atomics},
    {"scale", scale},
    {"poison", [] { expect_words("poisoned", 8, 128, [](unsigned) { return 0xCDCDCDCDu; }); }},
    {"pipeline", [] { pipeline(true, true); }},
    {"pipeline without the kernel's event", [] { pipeline(false, true); }},
    {"pipeline without the slot's event", [] { pipeline(true, false); }},
    {"reuse", [] { reuse(true); }},
    {"reuse without waiting", [] { reuse(false); }},
    {"host threads", host_threads},
    {"without context", without_context},
    {"events", events},
    {"copy too far", copy_too_far},
    {"speed", speed},
};

}  // namespace

// Any other word is the name of a kernel, which is launched as those of wrong.cu want to be.
int main(int count, char** words) {
    if (count != 2) return 2;
    open_device();
    auto scenario = SCENARIOS.find(words[1]);
    if (scenario != SCENARIOS.end()) {
        scenario->second();
    } else {
        words_of(words[1], 2, 128);
    }
    std::printf("all right\n");
}
