// Streams: one thread each, that does its tasks in order. A device is a row of them.
#pragma once

#include <algorithm>
#include <array>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <utility>

namespace simdev {

constexpr int kDevices = 2;
constexpr int kStreams = 33;  // the default stream, and a pool of 32 as CUDA has

// A task's end: who waits for it, and when it came.
class Marker {
 public:
  void finish() {
    std::lock_guard<std::mutex> hold(lock_);
    when_ = std::chrono::steady_clock::now();
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
  std::chrono::steady_clock::time_point when() {
    wait();
    return when_;
  }

 private:
  std::mutex lock_;
  std::condition_variable changed_;
  bool done_ = false;
  std::chrono::steady_clock::time_point when_;
};

using MarkerPtr = std::shared_ptr<Marker>;

// A wait is for what was submitted before it, so that no cycle can come about.
class Queue {
 public:
  MarkerPtr submit(std::function<void()> work = [] {}) {
    auto marker = std::make_shared<Marker>();
    std::lock_guard<std::mutex> hold(lock_);
    if (!last_) std::thread([this] { serve(); }).detach();
    last_ = marker;
    tasks_.emplace_back(std::move(work), marker);
    changed_.notify_one();
    return marker;
  }
  void wait_for(MarkerPtr marker) {
    if (marker && !marker->done()) submit([marker] { marker->wait(); });
  }
  // The end of the last task; null when there was none.
  MarkerPtr last() {
    std::lock_guard<std::mutex> hold(lock_);
    return last_;
  }
  bool idle() {
    auto marker = last();
    return !marker || marker->done();
  }
  void synchronize() {
    auto marker = last();
    if (marker) marker->wait();
  }

 private:
  void serve() {
    for (;;) {
      std::unique_lock<std::mutex> hold(lock_);
      changed_.wait(hold, [this] { return !tasks_.empty(); });
      auto [work, marker] = std::move(tasks_.front());
      tasks_.pop_front();
      hold.unlock();
      work();
      work = nullptr;  // what it held is released before anybody who waits goes on
      marker->finish();
    }
  }

  std::mutex lock_;
  std::condition_variable changed_;
  std::deque<std::pair<std::function<void()>, MarkerPtr>> tasks_;
  MarkerPtr last_;
};

struct Device {
  std::array<Queue, kStreams> queues;
  void synchronize() {
    for (auto& queue : queues) queue.synchronize();
  }
};

// Never destroyed: threads run until the process ends.
inline Device& device(int index) {
  static auto* devices = new std::array<Device, kDevices>();
  return devices->at(index);
}

inline int& current_device() {
  thread_local int index = 0;
  return index;
}

inline int64_t& current_stream(int index) {
  thread_local std::array<int64_t, kDevices> streams{};
  return streams.at(index);
}

inline Queue& current_queue(int index) {
  return device(index).queues.at(current_stream(index));
}

}  // namespace simdev
