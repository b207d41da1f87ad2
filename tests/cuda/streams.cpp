// The scheduler of the streams: see streams.h.
#include "streams.h"

#include "report.h"

#include <algorithm>

namespace cuda_cpu {

namespace {

bool is_done(const Mark& mark) { return !mark || mark->done; }

bool can_go_on(const Stream& stream) {
    return !stream.queue.empty() && std::ranges::all_of(stream.queue.front().after, is_done);
}

}  // namespace

// Some seeds do nothing before they must, some do one piece of work at every call, the others now and then.
Scheduler::Scheduler(uint64_t seed) : random_state(seed * 2 + 1) {
    static constexpr unsigned whims[] = {0, 16, 3, 1};
    whim_one_in = whims[seed % 4];
    default_stream = create(true);
}

uint64_t Scheduler::random() {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    uint64_t value = random_state >> 33 ^ random_state;
    return value * 0x9E3779B97F4A7C15u >> 20;
}

// ---- what comes next

// The stream of the highest priority that can go on. Priorities are drawn anew from time to time: so one
// stream may run far ahead while another stands still, which a fair choice would almost never do.
Stream* Scheduler::choose() {
    if (redraw_after-- == 0) {
        redraw_after = static_cast<unsigned>(random() % 24);
        for (auto& stream : streams) stream->priority = random();
    }
    Stream* chosen = nullptr;
    for (auto& stream : streams) {
        if (can_go_on(*stream) && (!chosen || stream->priority > chosen->priority)) chosen = stream.get();
    }
    return chosen;
}

// Does a piece of work, or waits until another host thread has done one. False if there is none.
bool Scheduler::do_one(Lock& lock) {
    if (busy) {
        changed.wait(lock);
        return true;
    }
    Stream* stream = choose();
    if (!stream) return false;
    Operation operation = std::move(stream->queue.front());
    stream->queue.pop_front();
    busy = true;
    if (operation.work && !error) {
        lock.unlock();
        int code = operation.work();
        lock.lock();
        if (code && !error) error = code;
    }
    busy = false;
    operation.mark->done = true;
    operation.mark->at = std::chrono::steady_clock::now();
    std::erase_if(streams, [](auto& stream) { return stream->destroyed && stream->queue.empty(); });
    changed.notify_all();
    return true;
}

void Scheduler::finish(Lock& lock, const Mark& mark) {
    while (!is_done(mark)) {
        if (!do_one(lock)) {
            say("the streams wait for each other: this is an error of the driver");
            give_up();
        }
    }
}

void Scheduler::follow_whim(Lock& lock) {
    while (whim_one_in && !busy && random() % whim_one_in == 0 && do_one(lock)) {
        if (whim_one_in == 1) break;
    }
}

// ---- streams and events

Stream* Scheduler::find(void* handle) {
    if (reinterpret_cast<uintptr_t>(handle) <= 2) return default_stream;
    Lock lock(mutex);
    for (auto& stream : streams) {
        if (stream.get() == handle && !stream->destroyed) return stream.get();
    }
    return nullptr;
}

Stream* Scheduler::create(bool blocking) {
    Lock lock(mutex);
    streams.push_back(std::make_unique<Stream>(blocking));
    streams.back()->priority = random();
    return streams.back().get();
}

// What is still in the queue is done later, as CUDA does.
void Scheduler::destroy(Stream& stream) {
    Lock lock(mutex);
    stream.destroyed = true;
    std::erase_if(streams, [](auto& stream) { return stream->destroyed && stream->queue.empty(); });
}

Mark Scheduler::add(Lock& lock, Stream& stream, Work work, std::vector<Mark> after) {
    // The default stream and the blocking ones wait for each other at every call.
    if (&stream == default_stream) {
        for (auto& other : streams) {
            if (other->blocking && other.get() != &stream) after.push_back(other->last);
        }
    } else if (stream.blocking) {
        after.push_back(default_stream->last);
    }
    std::erase_if(after, is_done);
    Mark mark = std::make_shared<Marker>();
    stream.queue.push_back({std::move(work), std::move(after), mark});
    stream.last = mark;
    follow_whim(lock);
    return mark;
}

Mark Scheduler::enqueue(Stream& stream, Work work) {
    Lock lock(mutex);
    return add(lock, stream, std::move(work), {});
}

void Scheduler::record(Event& event, Stream& stream) {
    Lock lock(mutex);
    event.recorded = add(lock, stream, nullptr, {});
}

void Scheduler::wait(Stream& stream, const Event& event) {
    Lock lock(mutex);
    add(lock, stream, nullptr, {event.recorded});
}

// ---- waiting for the streams

bool Scheduler::poll(const Mark& mark) {
    Lock lock(mutex);
    if (!is_done(mark)) do_one(lock);
    return is_done(mark);
}

Mark Scheduler::last_of(Stream& stream) {
    Lock lock(mutex);
    return stream.last;
}

Mark Scheduler::last_of(const Event& event) {
    Lock lock(mutex);
    return event.recorded;
}

void Scheduler::finish(const Mark& mark) {
    Lock lock(mutex);
    finish(lock, mark);
}

void Scheduler::finish_all() {
    Lock lock(mutex);
    std::vector<Mark> marks;
    for (auto& stream : streams) marks.push_back(stream->last);
    for (const Mark& mark : marks) finish(lock, mark);
}

bool Scheduler::elapsed(const Event& from, const Event& to, float& milliseconds) {
    Lock lock(mutex);
    if (!is_done(from.recorded) || !is_done(to.recorded)) return false;
    milliseconds = std::chrono::duration<float, std::milli>(to.recorded->at - from.recorded->at).count();
    return true;
}

int Scheduler::lost() {
    Lock lock(mutex);
    return error;
}

}  // namespace cuda_cpu
