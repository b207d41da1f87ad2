// Streams as queues whose work is done as late and in as strange an order as CUDA allows.
//
// Work is done when somebody waits for it, or at whim. What comes next is drawn from the seed; held to are
// the order within a stream, events that a stream was made to wait for, and the old default stream. So a wait
// that is missing gives wrong bytes under some seed, as it would on some machine.
//
// One piece of work is done at a time, by the host thread that waits, and other host threads may enqueue
// meanwhile.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <vector>

namespace cuda_cpu {

// A place in a stream: done when all work before it is.
struct Marker {
    bool done = false;
    std::chrono::steady_clock::time_point at{};
};
using Mark = std::shared_ptr<Marker>;

// Returns an error code, 0 for success. An error is the end of the device.
using Work = std::function<int()>;

struct Operation {
    Work work;
    std::vector<Mark> after;
    Mark mark;
};

struct Stream {
    // Takes part in the order of the old default stream.
    bool blocking;
    bool destroyed = false;
    uint64_t priority = 0;
    std::deque<Operation> queue{};
    Mark last{};
};

struct Event {
    bool timed;
    Mark recorded{};
};

class Scheduler {
    using Lock = std::unique_lock<std::mutex>;
    std::mutex mutex;
    std::condition_variable changed;
    std::vector<std::unique_ptr<Stream>> streams;
    Stream* default_stream;
    uint64_t random_state;
    // One in so many calls does work at once; 0: none does.
    unsigned whim_one_in;
    unsigned redraw_after = 0;
    bool busy = false;
    int error = 0;

    uint64_t random();
    Stream* choose();
    bool do_one(Lock& lock);
    void finish(Lock& lock, const Mark& mark);
    Mark add(Lock& lock, Stream& stream, Work work, std::vector<Mark> after);
    void follow_whim(Lock& lock);

public:
    explicit Scheduler(uint64_t seed);

    // Handles 0, 1 and 2 mean the default stream; null if it is no stream.
    Stream* find(void* handle);
    Stream* create(bool blocking);
    void destroy(Stream& stream);

    Mark enqueue(Stream& stream, Work work);
    void record(Event& event, Stream& stream);
    void wait(Stream& stream, const Event& event);

    // The last thing enqueued; the last record.
    Mark last_of(Stream& stream);
    Mark last_of(const Event& event);
    // Whether it is done, after one more piece of work if not: polling comes to an end.
    bool poll(const Mark& mark);
    void finish(const Mark& mark);
    void finish_all();
    // Milliseconds between two events; false if one of them is not done.
    bool elapsed(const Event& from, const Event& to, float& milliseconds);
    // Why the device is lost, or 0.
    int lost();
};

}  // namespace cuda_cpu
