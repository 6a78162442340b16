// Streams and events.

#include "streams.h"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <set>
#include <thread>
#include <utility>

namespace sim {
namespace {

struct Registry {
  std::mutex lock;
  std::set<Stream*> streams;
  Stream* defaults[kDevices] = {};
};

Registry& registry() {
  static auto* made = new Registry();
  return *made;
}

std::vector<Stream*> streams_of(int device) {
  std::lock_guard<std::mutex> hold(registry().lock);
  std::vector<Stream*> found;
  for (Stream* stream : registry().streams) {
    if (stream->device == device) found.push_back(stream);
  }
  return found;
}

Stream* add(int device, uint32_t priority) {
  auto* made = new Stream(device, priority);
  std::lock_guard<std::mutex> hold(registry().lock);
  registry().streams.insert(made);
  return made;
}

std::atomic<int32_t> streams_made{0};
std::atomic<aclError> lost{ACL_SUCCESS};

}  // namespace

aclError check_present() {
  const aclError error = lost;
  return error ? fail(error, "every call was told to fail") : ACL_SUCCESS;
}

void Marker::reach() {
  std::lock_guard<std::mutex> hold(lock_);
  reached_ = true;
  when_ = Clock::now();
  changed_.notify_all();
}

bool Marker::reached() const {
  std::lock_guard<std::mutex> hold(lock_);
  return reached_;
}

bool Marker::wait(int timeout_ms) const {
  std::unique_lock<std::mutex> hold(lock_);
  auto there = [this] { return reached_; };
  if (timeout_ms < 0) {
    changed_.wait(hold, there);
    return true;
  }
  return changed_.wait_for(hold, std::chrono::milliseconds(timeout_ms), there);
}

Clock::time_point Marker::when() const {
  std::lock_guard<std::mutex> hold(lock_);
  return when_;
}

Stream::Stream(int device, uint32_t priority)
    : device(device), priority(priority), id(++streams_made) {}

void Stream::enqueue(std::string name, Work work) {
  std::lock_guard<std::mutex> hold(lock_);
  tasks_.push_back({std::move(name), std::move(work)});
  if (!started_) {
    started_ = true;
    std::thread(&Stream::run, this).detach();
  }
  changed_.notify_all();
}

MarkerPtr Stream::mark() {
  auto made = std::make_shared<Marker>();
  enqueue("mark", [made] {
    made->reach();
    return ACL_SUCCESS;
  });
  return made;
}

bool Stream::idle() const {
  std::lock_guard<std::mutex> hold(lock_);
  return tasks_.empty() && !busy_;
}

aclError Stream::synchronize(int timeout_ms) {
  if (aclError error = check_present()) return error;
  if (!idle() && !mark()->wait(timeout_ms)) {
    return fail(ACL_ERROR_RT_STREAM_SYNC_TIMEOUT, "a stream is still busy");
  }
  std::lock_guard<std::mutex> hold(lock_);
  const aclError failure = std::exchange(failure_, ACL_SUCCESS);
  return failure ? fail(failure, said_) : ACL_SUCCESS;
}

void Stream::end() {
  std::lock_guard<std::mutex> hold(lock_);
  ended_ = true;
  changed_.notify_all();
}

void Stream::run() {
  pthread_setname_np(pthread_self(), ("stream" + std::to_string(id)).c_str());
  aclrtSetDevice(device);
  std::unique_lock<std::mutex> hold(lock_);
  while (true) {
    changed_.wait(hold, [this] { return !tasks_.empty() || ended_; });
    if (tasks_.empty()) break;
    Task task = std::move(tasks_.front());
    tasks_.pop_front();
    busy_ = true;
    hold.unlock();
    const aclError error = task.work();
    task.work = nullptr;  // what it holds goes before anybody sees the stream idle
    hold.lock();
    busy_ = false;
    if (error && !failure_) {
      failure_ = error;
      said_ = task.name + ": " + aclGetRecentErrMsg();
    }
  }
}

Stream* stream_of(aclrtStream handle) {
  std::unique_lock<std::mutex> hold(registry().lock);
  if (handle) {
    auto* stream = static_cast<Stream*>(handle);
    return registry().streams.count(stream) ? stream : nullptr;
  }
  const int device = current_device();
  if (device < 0) return nullptr;
  if (!registry().defaults[device]) {
    hold.unlock();
    Stream* made = add(device, 0);
    hold.lock();
    registry().defaults[device] = made;
  }
  return registry().defaults[device];
}

bool has_streams(int device) { return !streams_of(device).empty(); }

aclError synchronize_device(int device, int timeout_ms) {
  aclError first = ACL_SUCCESS;
  for (Stream* stream : streams_of(device)) {
    const aclError error = stream->synchronize(timeout_ms);
    if (!first) first = error;
  }
  return first;
}

aclError submit(aclrtStream handle, const char* name, Work work) {
  Stream* stream = stream_of(handle);
  if (!stream) return fail(ACL_ERROR_RT_INVALID_HANDLE, std::string(name) + " on no stream");
  if (aclError error = check_present()) return error;
  bool added = false;
  const aclError error = add_to_graph(stream, name, work, &added);
  if (!error && !added) {
    stream->enqueue(name, std::move(work));
  } else if (work) {
    // Dropping tensors may take the GIL, whose holder may wait for this thread, never for a stream's.
    stream->enqueue("drop", [work = std::move(work)] { return ACL_SUCCESS; });
  }
  return error;
}

}  // namespace sim

using namespace sim;

namespace {

aclError create(aclrtStream* handle, uint32_t priority, uint32_t flags) {
  if (current_device() < 0) return ACL_ERROR_RT_CONTEXT_NULL;
  *handle = add(current_device(), priority);
  trace("aclrtCreateStream stream=%p device=%d priority=%u flags=%u", *handle, current_device(),
        priority, flags);
  return ACL_SUCCESS;
}

aclError no_stream() { return fail(ACL_ERROR_RT_INVALID_HANDLE, "that is no stream"); }

aclError synchronize(aclrtStream handle, int32_t timeout_ms) {
  Stream* stream = stream_of(handle);
  if (!stream) return no_stream();
  if (aclError error = refuse_while_capturing(stream, "aclrtSynchronizeStream")) return error;
  trace("aclrtSynchronizeStream stream=%p", handle);
  Unlocked unlocked;
  return stream->synchronize(timeout_ms);
}

aclError synchronize_all(int32_t timeout_ms) {
  if (current_device() < 0) return ACL_ERROR_RT_CONTEXT_NULL;
  trace("aclrtSynchronizeDevice device=%d", current_device());
  Unlocked unlocked;
  return synchronize_device(current_device(), timeout_ms);
}

aclError destroy(aclrtStream handle) {
  Stream* stream = stream_of(handle);
  if (!stream) return no_stream();
  {
    Unlocked unlocked;
    stream->synchronize(-1);
  }
  std::lock_guard<std::mutex> hold(registry().lock);
  registry().streams.erase(stream);
  stream->end();  // and is kept: its thread may still look at it
  return ACL_SUCCESS;
}

}  // namespace

extern "C" {

void ascend_sim_lose(int error) { lost = error; }

aclError aclrtCreateStream(aclrtStream* handle) { return create(handle, 0, 0); }
aclError aclrtCreateStreamWithConfig(aclrtStream* handle, uint32_t priority, uint32_t flags) {
  return create(handle, priority, flags);
}
aclError aclrtDestroyStream(aclrtStream handle) { return destroy(handle); }
aclError aclrtDestroyStreamForce(aclrtStream handle) { return destroy(handle); }
aclError aclrtSynchronizeStream(aclrtStream handle) { return synchronize(handle, -1); }
aclError aclrtSynchronizeStreamWithTimeout(aclrtStream handle, int32_t timeout_ms) {
  return synchronize(handle, timeout_ms);
}
aclError aclrtSynchronizeDevice() { return synchronize_all(-1); }
aclError aclrtSynchronizeDeviceWithTimeout(int32_t timeout_ms) {
  return synchronize_all(timeout_ms);
}

aclError aclrtStreamQuery(aclrtStream handle, aclrtStreamStatus* status) {
  Stream* stream = stream_of(handle);
  if (!stream) return no_stream();
  *status = stream->idle() ? ACL_STREAM_STATUS_COMPLETE : ACL_STREAM_STATUS_NOT_READY;
  return ACL_SUCCESS;
}

aclError aclrtStreamGetId(aclrtStream handle, int32_t* id) {
  Stream* stream = stream_of(handle);
  if (!stream) return no_stream();
  *id = stream->id;
  return ACL_SUCCESS;
}

aclError aclrtSetStreamFailureMode(aclrtStream, uint64_t) { return ACL_SUCCESS; }
aclError aclrtSetStreamAttribute(aclrtStream, aclrtStreamAttr, aclrtStreamAttrValue*) {
  return ACL_SUCCESS;
}
aclError aclrtSetStreamOverflowSwitch(aclrtStream, uint32_t) { return ACL_SUCCESS; }
aclError aclrtGetStreamOverflowSwitch(aclrtStream, uint32_t* flag) {
  *flag = 0;
  return ACL_SUCCESS;
}

aclError aclrtLaunchHostFunc(aclrtStream handle, aclrtHostFunc function, void* argument) {
  return submit(handle, "host function", [=] {
    function(argument);
    return ACL_SUCCESS;
  });
}

}  // extern "C"
