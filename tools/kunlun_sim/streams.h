// Streams: one thread each, that does its tasks in order. Events: the end of what was recorded.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <utility>

#include "trace.h"

namespace kunlun_sim {

// A task's end, for those who wait for it.
class Marker {
 public:
  void finish() {
    std::lock_guard<std::mutex> hold(lock_);
    done_ = true;
    changed_.notify_all();
  }
  bool done() {
    std::lock_guard<std::mutex> hold(lock_);
    return done_;
  }
  void wait() {
    std::unique_lock<std::mutex> hold(lock_);
    changed_.wait(hold, [this] { return done_; });
  }

 private:
  std::mutex lock_;
  std::condition_variable changed_;
  bool done_ = false;
};

using MarkerPtr = std::shared_ptr<Marker>;

// How late a stream begins each of its tasks, so that who does not wait for it is found out.
inline std::chrono::microseconds delay() {
  static const char* words = std::getenv("KUNLUN_SIM_DELAY_US");
  static const auto found = std::chrono::microseconds(words ? std::atoll(words) : 0);
  return found;
}

// A wait is for what was submitted before it, so that no cycle can come about.
class Stream {
 public:
  explicit Stream(int device) : device_(device), id_(next_id()), worker_([this] { serve(); }) {}

  // Finishes what was submitted.
  ~Stream() {
    {
      std::lock_guard<std::mutex> hold(lock_);
      closing_ = true;
      changed_.notify_one();
    }
    worker_.join();
  }

  int device() const { return device_; }
  int id() const { return id_; }

  // The trace has the submission, with its details, and the end.
  template <typename... Details>
  MarkerPtr submit(const char* name, std::function<void()> work, const Details&... details) {
    auto marker = std::make_shared<Marker>();
    std::lock_guard<std::mutex> hold(lock_);
    trace().write("submit", name, "stream", id_, details...);
    last_ = marker;
    tasks_.push_back({name, std::move(work), marker});
    changed_.notify_one();
    return marker;
  }

  // The end of the last task; null when there was none.
  MarkerPtr last() {
    std::lock_guard<std::mutex> hold(lock_);
    return last_;
  }

  void synchronize() {
    if (auto marker = last()) marker->wait();
  }

 private:
  struct Task {
    const char* name;
    std::function<void()> work;
    MarkerPtr marker;
  };

  static int next_id() {
    static std::atomic<int> made{0};
    return ++made;
  }

  void serve() {
    for (;;) {
      std::unique_lock<std::mutex> hold(lock_);
      changed_.wait(hold, [this] { return closing_ || !tasks_.empty(); });
      if (tasks_.empty()) return;
      Task task = std::move(tasks_.front());
      tasks_.pop_front();
      hold.unlock();
      if (delay().count()) std::this_thread::sleep_for(delay());
      task.work();
      trace().write("done", task.name, "stream", id_);
      task.marker->finish();
    }
  }

  const int device_;
  const int id_;
  std::mutex lock_;
  std::condition_variable changed_;
  std::deque<Task> tasks_;
  MarkerPtr last_;
  bool closing_ = false;
  std::thread worker_;  // last: it uses all of the above
};

// An event that was never recorded is complete.
class Event {
 public:
  void record(Stream& stream) {
    auto marker = stream.submit("record_event", [] {}, "event", this);
    std::lock_guard<std::mutex> hold(lock_);
    marker_ = marker;
  }
  MarkerPtr marker() {
    std::lock_guard<std::mutex> hold(lock_);
    return marker_;
  }

 private:
  std::mutex lock_;
  MarkerPtr marker_;
};

// The streams that exist, so that a device can wait for all of its own.
class Streams {
 public:
  Stream* make(int device) {
    auto made = std::make_unique<Stream>(device);
    std::lock_guard<std::mutex> hold(lock_);
    return *all_.insert(made.release()).first;
  }
  bool destroy(Stream* stream) {
    {
      std::lock_guard<std::mutex> hold(lock_);
      if (!all_.erase(stream)) return false;
    }
    delete stream;
    return true;
  }
  void synchronize(int device) {
    std::set<MarkerPtr> ends;
    {
      std::lock_guard<std::mutex> hold(lock_);
      for (Stream* stream : all_) {
        if (stream->device() == device) ends.insert(stream->last());
      }
    }
    for (const auto& end : ends) {
      if (end) end->wait();
    }
  }

 private:
  std::mutex lock_;
  std::set<Stream*> all_;
};

inline Streams& streams() {
  static auto* made = new Streams();
  return *made;
}

}  // namespace kunlun_sim
