// The engine: see engine.h. A Worker is an OS thread's part of it and runs one block after the other.
//
// Threads that can go on stand in a queue. One that must wait takes the next from the queue, or one that has
// not begun, and switches to it; one that ends hands its stack to the next that begins, so that a kernel
// without barriers uses a single stack and never switches.
#include "engine.h"

#include "fiber.h"
#include "report.h"

#include <array>
#include <atomic>
#include <condition_variable>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <link.h>
#include <mutex>
#include <sched.h>
#include <thread>
#include <vector>

// The words of CUDA are for kernels: here they would hide members of the same names.
#undef threadIdx
#undef blockIdx
#undef blockDim
#undef gridDim

namespace cuda_cpu {

const Kernel* kernels = nullptr;
bool conflicts_wanted = false;

struct Thread : ThreadPlace {
    Stack* stack = nullptr;
    class Worker* worker = nullptr;
    Standing standing{};
};

namespace {

constexpr unsigned LANES = 32, WARPS_MAX = BLOCK_THREADS_MAX / LANES;
constexpr unsigned char SHARED_POISON = 0xCD;

uint64_t mix(uint64_t value) {
    value = (value ^ value >> 30) * 0xBF58476D1CE4E5B9u;
    value = (value ^ value >> 27) * 0x94D049BB133111EBu;
    return value ^ value >> 31;
}

// Orders in which the threads of a block begin; a block takes one of them.
class Orders {
    static constexpr unsigned COUNT = 8;
    std::array<std::array<uint16_t, BLOCK_THREADS_MAX>, COUNT> orders;
    unsigned threads = 0;
    uint64_t seed = 0;

    void shuffle(std::array<uint16_t, BLOCK_THREADS_MAX>& order, uint64_t random) {
        for (unsigned i = threads; i > 1; i--) std::swap(order[i - 1], order[(random = mix(random + i)) % i]);
    }

public:
    void prepare(unsigned new_threads, uint64_t new_seed) {
        if (threads == new_threads && seed == new_seed) return;
        threads = new_threads;
        seed = new_seed;
        for (unsigned which = 0; which < COUNT; which++) {
            for (unsigned i = 0; i < threads; i++) {
                // Every second one backwards; the first two are not shuffled.
                orders[which][i] = static_cast<uint16_t>(which % 2 ? threads - 1 - i : i);
            }
            if (which >= 2) shuffle(orders[which], mix(seed * COUNT + which));
        }
    }
    const uint16_t* pick(uint64_t random) const { return orders[random % COUNT].data(); }
};

// Threads that can go on, the longest waiting first.
class Queue {
    std::array<Thread*, BLOCK_THREADS_MAX> threads;
    unsigned first = 0, count = 0;

public:
    void clear() { first = count = 0; }
    bool empty() const { return count == 0; }
    void push(Thread* thread) { threads[(first + count++) % BLOCK_THREADS_MAX] = thread; }
    Thread* pop() {
        Thread* thread = threads[first];
        first = (first + 1) % BLOCK_THREADS_MAX;
        count--;
        return thread;
    }
};

struct Warp {
    unsigned alive = 0;
    // Each lane takes part in at most one meeting, so there is always a free one.
    std::array<Meeting, LANES> meetings;

    void reset(unsigned lanes) {
        alive = lanes;
        for (Meeting& meeting : meetings) meeting.mask = meeting.arrived = meeting.still_reading = 0;
    }
    Meeting& join(unsigned mask, WarpOperation operation) {
        Meeting* free = nullptr;
        for (Meeting& meeting : meetings) {
            if (meeting.arrived && meeting.mask == mask) return meeting;
            if (!meeting.arrived && !meeting.still_reading) {
                if (!free) free = &meeting;
                // Meetings are taken from the first on, so none beyond one that was never used is under way.
                if (!meeting.mask) break;
            }
        }
        free->mask = mask;
        free->operation = operation;
        return *free;
    }
};

// The threads that wait for the rest of their block.
struct Barrier {
    std::array<Thread*, BLOCK_THREADS_MAX> waiting;
    unsigned arrived = 0, sum = 0, result = 0;
    Site site;
};

struct SharedMemory {
    char* begin = nullptr;
    size_t bytes = 0;
};

// The variables that are static thread_local: this library's block of the OS thread's own storage. Engine and
// driver keep nothing of their own in there that may not be overwritten.
SharedMemory shared_of_this_os_thread() {
    SharedMemory found;
#if !defined(CUDA_CPU_CHECKED)
    // The system makes it when it is first used.
    static thread_local volatile char first_use;
    first_use = 0;
    auto look = [](dl_phdr_info* library, size_t, void* found) {
        uintptr_t inside = reinterpret_cast<uintptr_t>(&kernels);
        bool ours = false;
        const ElfW(Phdr)* shared = nullptr;
        for (int i = 0; i < library->dlpi_phnum; i++) {
            const auto& segment = library->dlpi_phdr[i];
            if (segment.p_type == PT_TLS) shared = &segment;
            uintptr_t begin = library->dlpi_addr + segment.p_vaddr;
            ours |= segment.p_type == PT_LOAD && inside - begin < segment.p_memsz;
        }
        if (ours && shared && library->dlpi_tls_data) {
            *static_cast<SharedMemory*>(found) = {static_cast<char*>(library->dlpi_tls_data),
                                                  shared->p_memsz};
        }
        return static_cast<int>(ours);
    };
    dl_iterate_phdr(look, &found);
#endif
    return found;
}

void thread_main();

}  // namespace

class Worker {
    const Launch* launch = nullptr;
    std::atomic<bool>* failed = nullptr;
    BlockPlace place{};
    std::vector<char> dynamic_shared;
    std::vector<Thread> threads{BLOCK_THREADS_MAX};
    std::vector<Warp> warps{WARPS_MAX};
    Barrier barrier;
    Orders orders;
    const uint16_t* order = nullptr;
    bool finish_what_began = false;
    unsigned thread_count = 0, begun = 0, alive = 0;
    Queue ready;
    unsigned first_stack;
    std::vector<Stack> stacks{BLOCK_THREADS_MAX};
    std::vector<Stack*> free_stacks;
    Suspended outside;
    Conflicts conflicts;
    unsigned phase = 0, launch_first_phase = 0;

public:
    explicit Worker(unsigned number) : first_stack(number * BLOCK_THREADS_MAX) { renew_stacks(); }

    void begin(const Launch& launch, std::atomic<bool>& failed);
    void run_block(unsigned index);
    void run_thread() { launch->kernel->run(launch->arguments); }
    void end(Thread& thread);
    void note_conflict(const Thread& thread, const volatile void* word) {
        conflicts.add(thread.rank, thread.step, word);
    }
    Passes take_passes() { return conflicts.take(); }
    unsigned wait_for_block(Thread& thread, unsigned value, Site site);
    Meeting& wait_for_warp(Thread& thread, unsigned mask, WarpOperation operation, uint64_t value, Site site);
    std::string describe(const Thread& thread) const;
    bool holds(uintptr_t address, size_t bytes) const {
        uintptr_t offset = address - reinterpret_cast<uintptr_t>(place.dynamic_shared);
        return offset < launch->dynamic_shared_bytes && bytes <= launch->dynamic_shared_bytes - offset;
    }

private:
    // What stands between two threads is inlined into the function that waits.
    void renew_stacks();
    [[gnu::always_inline]] inline Stack& take_stack();
    [[gnu::always_inline]] inline void put_on(Thread& thread, Stack& stack);
    [[gnu::always_inline]] inline Thread* next();
    [[gnu::always_inline]] inline void suspend(Thread& thread);
    [[noreturn]] void fail_between(const Thread& thread, Site site);
    [[gnu::always_inline]] inline void release_barrier();
    [[gnu::always_inline]] inline void complete(Meeting& meeting, Warp& warp);
    [[noreturn]] void fail();
    [[noreturn]] void fail_at(const Thread& thread, Site site, const char* what);
    [[noreturn]] void stuck();
};

namespace {

Thread& running() { return const_cast<Thread&>(static_cast<const Thread&>(cuda_cpu::place())); }

// What a fiber does: one CUDA thread after the other.
void thread_main() {
    for (;;) {
        running().worker->run_thread();
        running().worker->end(running());
    }
}

}  // namespace

// ---- launches and blocks

void Worker::begin(const Launch& new_launch, std::atomic<bool>& new_failed) {
    launch = &new_launch;
    failed = &new_failed;
    thread_count = launch->threads.x * launch->threads.y * launch->threads.z;
    launch_first_phase = ++phase;
    // Some more, since kernels may want the beginning aligned.
    dynamic_shared.resize(launch->dynamic_shared_bytes + 128);
    auto unaligned = reinterpret_cast<uintptr_t>(dynamic_shared.data());
    place.dynamic_shared = dynamic_shared.data() + (128 - unaligned % 128) % 128;
    place.threads = launch->threads;
    place.grid = launch->grid;
    SharedMemory shared = shared_of_this_os_thread();
    place.shared = shared.begin;
    place.shared_bytes = shared.bytes;
    orders.prepare(thread_count, launch->seed);
    dim3 size = launch->threads;
    for (unsigned rank = 0; rank < thread_count; rank++) {
        Thread& thread = threads[rank];
        thread.index = {rank % size.x, rank / size.x % size.y, rank / size.x / size.y};
        thread.rank = rank;
        thread.block = &place;
        thread.worker = this;
        thread.stack = nullptr;
    }
    for (Warp& warp : warps) warp.reset(0);
}

void Worker::run_block(unsigned index) {
    dim3 grid = launch->grid;
    place.index = {index % grid.x, index / grid.x % grid.y, index / grid.x / grid.y};
    if (place.shared) std::memset(place.shared, SHARED_POISON, place.shared_bytes);
    std::memset(place.dynamic_shared, SHARED_POISON, launch->dynamic_shared_bytes);
    uint64_t random = mix(launch->seed ^ mix(index + 1));
    order = orders.pick(random);
    finish_what_began = random >> 32 & 1;
    begun = 0;
    alive = thread_count;
    for (unsigned first = 0; first < thread_count; first += LANES) {
        unsigned lanes = thread_count - first;
        warps[first / LANES].alive = lanes >= LANES ? ~0u : (1u << lanes) - 1;
    }
#if defined(CUDA_CPU_CHECKED)
    phase++;
    for (unsigned rank = 0; rank < thread_count; rank++)
        threads[rank].standing = {launch_first_phase, phase, phase, 0, 0};
#endif
    if (conflicts_wanted) {
        conflicts.begin_block(thread_count);
        for (unsigned rank = 0; rank < thread_count; rank++) threads[rank].step = 0;
    }
    Thread& thread = *next();
    put_on(thread, take_stack());
    switch_fibers(outside, thread.stack->suspended);
    if (conflicts_wanted) conflicts.end_block();
}

// ---- threads and stacks

void Worker::renew_stacks() {
    free_stacks.clear();
    ready.clear();
    barrier.arrived = barrier.sum = 0;
    for (unsigned i = BLOCK_THREADS_MAX; i-- > 0;) {
        stacks[i].number = first_stack + i;
        stacks[i].prepared = false;
        free_stacks.push_back(&stacks[i]);
    }
}

Stack& Worker::take_stack() {
    Stack& stack = *free_stacks.back();
    free_stacks.pop_back();
    if (!stack.prepared) prepare(stack, thread_main);
    return stack;
}

void Worker::put_on(Thread& thread, Stack& stack) {
    thread.stack = &stack;
    place_by_stack[stack.number] = &thread;
}

// The thread that goes on or begins next; none if all wait.
Thread* Worker::next() {
    bool can_begin = begun < thread_count;
    if (!ready.empty() && (finish_what_began || !can_begin)) return ready.pop();
    return can_begin ? &threads[order[begun++]] : nullptr;
}

// Lets others run until something makes this thread ready.
void Worker::suspend(Thread& thread) {
    Thread* other = next();
    if (!other) stuck();
    if (!other->stack) put_on(*other, take_stack());
    switch_fibers(thread.stack->suspended, other->stack->suspended);
}

// Returns when the stack of the ended thread has another to run.
void Worker::end(Thread& thread) {
    Stack& stack = *thread.stack;
    thread.stack = nullptr;
    warps[thread.rank / LANES].alive &= ~(1u << thread.rank % LANES);
    alive--;
    if (alive && barrier.arrived == alive) release_barrier();
    Thread* other = next();
    if (other && !other->stack) return put_on(*other, stack);
    if (!other && alive) stuck();
    free_stacks.push_back(&stack);
    switch_fibers(stack.suspended, other ? other->stack->suspended : outside);
}

// ---- waiting

void Worker::release_barrier() {
    for (unsigned i = 0; i < barrier.arrived; i++) ready.push(barrier.waiting[i]);
    barrier.result = barrier.sum;
    barrier.arrived = barrier.sum = 0;
#if defined(CUDA_CPU_CHECKED)
    phase++;
    for (unsigned rank = 0; rank < thread_count; rank++) threads[rank].standing.phase = phase;
#endif
}

namespace {

bool same(Site a, Site b) {
    // Mostly it is the very same object.
    if (!std::memcmp(&a, &b, sizeof a)) return true;
    return a.line() == b.line() && a.column() == b.column() && !std::strcmp(a.file_name(), b.file_name());
}

}  // namespace

unsigned Worker::wait_for_block(Thread& thread, unsigned value, Site site) {
    if (barrier.arrived == 0) {
        barrier.site = site;
    } else if (!same(barrier.site, site)) {
        fail_between(thread, site);
    }
    barrier.sum += value;
    if (barrier.arrived + 1 == alive) {
        release_barrier();
    } else {
        barrier.waiting[barrier.arrived++] = &thread;
        suspend(thread);
    }
    return barrier.result;
}

void Worker::complete(Meeting& meeting, [[maybe_unused]] Warp& warp) {
    meeting.arrived = 0;
    meeting.still_reading = static_cast<unsigned>(__builtin_popcount(meeting.mask));
#if defined(CUDA_CPU_CHECKED)
    // Only __syncwarp orders memory.
    if (meeting.operation != WarpOperation::Sync) return;
    phase++;
    unsigned first = static_cast<unsigned>(&warp - warps.data()) * LANES;
    for (unsigned lane = 0; lane < LANES; lane++) {
        if (!(meeting.mask >> lane & 1)) continue;
        Standing& standing = threads[first + lane].standing;
        standing.warp_phase = phase;
        standing.warp_mask = meeting.mask;
    }
#endif
}

Meeting& Worker::wait_for_warp(Thread& thread, unsigned mask, WarpOperation operation, uint64_t value,
                               Site site) {
    Warp& warp = warps[thread.rank / LANES];
    unsigned lane = thread.rank % LANES;
    if (!(mask >> lane & 1))
        fail_at(thread, site, "a lane calls a warp operation whose mask does not name it");
    if (mask & ~warp.alive) fail_at(thread, site, "the mask of a warp operation names lanes that have ended");
    Meeting& meeting = warp.join(mask, operation);
    if (meeting.operation != operation)
        fail_at(thread, site, "lanes of one mask call different warp operations");
    meeting.values[lane] = value;
    meeting.waiting[lane] = &thread;
    meeting.arrived |= 1u << lane;
    if (meeting.arrived == mask) {
        for (unsigned others = mask & ~(1u << lane); others; others &= others - 1) {
            ready.push(meeting.waiting[__builtin_ctz(others)]);
        }
        complete(meeting, warp);
    } else {
        suspend(thread);
    }
    return meeting;
}

// ---- failures

// Leaves the block: its fibers are forgotten where they stand. Kernels own nothing that would have to be
// given back.
void Worker::fail() {
    *failed = true;
    renew_stacks();
    for (Thread& thread : threads) thread.stack = nullptr;
    for (Warp& warp : warps) warp.reset(0);
    Suspended forgotten;
    switch_fibers(forgotten, outside);
    give_up();
}

std::string Worker::describe(const Thread& thread) const {
    char text[256];
    std::snprintf(text, sizeof text, "kernel %s, block %u,%u,%u, thread %u,%u,%u", launch->kernel->name,
                  place.index.x, place.index.y, place.index.z, thread.index.x, thread.index.y,
                  thread.index.z);
    return text;
}

void Worker::fail_at(const Thread& thread, Site site, const char* what) {
    say("%s (%s:%u; %s)", what, site.file_name(), site.line(), describe(thread).c_str());
    fail();
}

void Worker::fail_between(const Thread& thread, Site site) {
    say("threads of a block wait at different barriers: %s:%u and %s:%u", barrier.site.file_name(),
        barrier.site.line(), site.file_name(), site.line());
    fail_at(thread, site, "the barrier is not reached by all threads of the block");
}

void Worker::stuck() {
    say("deadlock in kernel %s, block %u,%u,%u: no thread can go on", launch->kernel->name, place.index.x,
        place.index.y, place.index.z);
    if (barrier.arrived) {
        say("  %u of %u threads wait at the barrier %s:%u", barrier.arrived, alive, barrier.site.file_name(),
            barrier.site.line());
    }
    for (unsigned number = 0; number * LANES < thread_count; number++) {
        for (const Meeting& meeting : warps[number].meetings) {
            if (!meeting.arrived) continue;
            say("  warp %u waits in an operation with mask %08x for the lanes %08x, of which %08x have ended",
                number, meeting.mask, meeting.mask & ~meeting.arrived, meeting.mask & ~warps[number].alive);
        }
    }
    fail();
}

// ---- all workers

namespace {

unsigned wanted_workers() {
#if defined(CUDA_CPU_CHECKED)
    return 1;
#else
    if (const char* wanted = std::getenv("FAKE_CUDA_THREADS")) return std::max(1, std::atoi(wanted));
    cpu_set_t allowed;
    if (sched_getaffinity(0, sizeof allowed, &allowed)) return 1;
    return static_cast<unsigned>(std::max(1, std::min(CPU_COUNT(&allowed), 16)));
#endif
}

// Worker 0 is whoever launches; the others are OS threads that wait for launches.
class Engine {
    std::vector<Worker> workers;
    std::mutex mutex;
    std::condition_variable changed;
    const Launch* launch = nullptr;
    uint64_t launch_number = 0;
    unsigned busy = 0;
    std::atomic<unsigned> next_block{0};
    std::atomic<bool> failed{false};
    unsigned block_count = 0;

    void work(Worker& worker) {
        worker.begin(*launch, failed);
        for (unsigned index; !failed && (index = next_block++) < block_count;) worker.run_block(index);
    }

    void wait_for_launches(Worker& worker) {
        uint64_t seen = 0;
        std::unique_lock lock(mutex);
        for (;;) {
            changed.wait(lock, [&] { return launch_number != seen; });
            seen = launch_number;
            if (!launch) continue;
            busy++;
            lock.unlock();
            work(worker);
            lock.lock();
            busy--;
            changed.notify_all();
        }
    }

public:
    Engine() {
        unsigned count = wanted_workers();
        reserve_stacks(count * BLOCK_THREADS_MAX);
        workers.reserve(count);
        for (unsigned number = 0; number < count; number++) workers.emplace_back(number);
        for (unsigned number = 1; number < count; number++) {
            std::thread([this, number] { wait_for_launches(workers[number]); }).detach();
        }
    }

    bool run(const Launch& new_launch) {
        {
            std::lock_guard lock(mutex);
            launch = &new_launch;
            block_count = launch->grid.x * launch->grid.y * launch->grid.z;
            next_block = 0;
            failed = false;
            launch_number++;
        }
        if (block_count > 1) changed.notify_all();
        work(workers[0]);
        std::unique_lock lock(mutex);
        changed.wait(lock, [&] { return busy == 0; });
        launch = nullptr;
        return !failed;
    }

    Passes take_passes() {
        Passes passes;
        for (Worker& worker : workers) passes += worker.take_passes();
        return passes;
    }

    bool has_stack_at(uintptr_t address) const {
        return address - stacks_begin < workers.size() * BLOCK_THREADS_MAX * STACK_BYTES;
    }
};

void find_faults();

// Never destroyed: its OS threads wait until the process ends.
Engine& engine() {
    static Engine& engine = *[] {
        find_faults();
        return new Engine;
    }();
    return engine;
}

struct sigaction fault_of_program;

// A kernel that follows an address which is none is named. Other faults are the program's own.
void on_fault(int signal, siginfo_t*, void*) {
    if (!engine().has_stack_at(reinterpret_cast<uintptr_t>(__builtin_frame_address(0)))) {
        // It comes again, as soon as this returns.
        sigaction(signal, &fault_of_program, nullptr);
        return;
    }
    say("an access where there is no memory (%s)", running_thread().c_str());
    give_up();
}

void find_faults() {
    struct sigaction ours = {};
    // On the stack of whoever has the fault, by which kernels are known from the program.
    ours.sa_flags = SA_SIGINFO;
    ours.sa_sigaction = on_fault;
    sigaction(SIGSEGV, &ours, &fault_of_program);
}

}  // namespace

bool run(const Launch& launch) { return engine().run(launch); }
Passes take_passes() { return engine().take_passes(); }
void note_conflict(const volatile void* word) { running().worker->note_conflict(running(), word); }
const Standing& standing() { return running().standing; }
std::string running_thread() { return running().worker->describe(running()); }
bool on_a_stack(uintptr_t address) { return engine().has_stack_at(address); }
bool in_dynamic_shared(uintptr_t address, size_t bytes) { return running().worker->holds(address, bytes); }

unsigned barrier(unsigned value, Site site) {
    Thread& thread = running();
    return thread.worker->wait_for_block(thread, value, site);
}

Meeting& meet(unsigned mask, WarpOperation operation, uint64_t value, Site site) {
    Thread& thread = running();
    return thread.worker->wait_for_warp(thread, mask, operation, value, site);
}

}  // namespace cuda_cpu
