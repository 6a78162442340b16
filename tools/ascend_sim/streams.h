// Streams: each does its work in order, on a thread of its own, while the host goes on.
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "sim.h"

namespace sim {

using Clock = std::chrono::steady_clock;

// A place in a stream's work, reached when all before it is done.
class Marker {
 public:
  void reach();
  bool reached() const;
  bool wait(int timeout_ms) const;  // false when the time is over; negative waits for ever
  Clock::time_point when() const;

 private:
  mutable std::mutex lock_;
  mutable std::condition_variable changed_;
  bool reached_ = false;
  Clock::time_point when_;
};
using MarkerPtr = std::shared_ptr<Marker>;

// What a stream was asked to do while it captured; see graphs.cpp.
struct Graph;

class Stream {
 public:
  Stream(int device, uint32_t priority);
  void enqueue(std::string name, Work work);
  MarkerPtr mark();
  bool idle() const;
  // Waits until all work queued so far is done; the first failure since the last call.
  aclError synchronize(int timeout_ms);
  void end();  // once idle

  const int device;
  const uint32_t priority;
  const int32_t id;
  // Guarded by capturing() in graphs.cpp.
  Graph* capture = nullptr;

 private:
  struct Task {
    std::string name;
    Work work;
  };
  void run();

  mutable std::mutex lock_;
  std::condition_variable changed_;
  std::deque<Task> tasks_;
  bool started_ = false, busy_ = false, ended_ = false;
  aclError failure_ = ACL_SUCCESS;
  std::string said_;
};

// Streams and graphs that still wait for an event keep it, as the device does when it is destroyed.
struct Event {
  uint32_t flags;
  std::mutex lock;
  MarkerPtr last;            // null before it was recorded
  Graph* graph = nullptr;    // recorded by a stream that captures
};
using EventPtr = std::shared_ptr<Event>;

// The stream behind a handle, the device's default one for null; throws for what is no stream.
Stream* stream_of(aclrtStream handle);
bool has_streams(int device);
aclError synchronize_device(int device, int timeout_ms);
aclError check_present();  // the error of a device that was lost

// Hooks of capture: whether the call was taken into a graph.
bool capture_record(Stream* stream, const EventPtr& event);
bool capture_wait(Stream* stream, const EventPtr& event);
bool capture_reset(Stream* stream, const EventPtr& event);
// Takes work into a graph; an update leaves in its place the work that it replaces.
aclError add_to_graph(Stream* stream, const char* name, Work& work, bool* added);
aclError refuse_while_capturing(Stream* stream, const char* what);

}  // namespace sim
