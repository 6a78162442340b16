// Events. Waiting for one that was never recorded is waiting for nothing, as on the device.

#include "streams.h"

namespace sim {
namespace {

const EventPtr& event_of(aclrtEvent handle) { return *static_cast<EventPtr*>(handle); }

MarkerPtr last_of(const EventPtr& event) {
  std::lock_guard<std::mutex> hold(event->lock);
  return event->last;
}

aclError create(aclrtEvent* handle, uint32_t flags) {
  auto* made = new EventPtr(new Event());
  (*made)->flags = flags;
  *handle = made;
  trace("aclrtCreateEvent event=%p flags=%u", *handle, flags);
  return ACL_SUCCESS;
}

bool is_timed(const EventPtr& event) { return (event->flags & ACL_EVENT_TIME_LINE) != 0; }

}  // namespace
}  // namespace sim

using namespace sim;

extern "C" {

aclError aclrtCreateEventWithFlag(aclrtEvent* handle, uint32_t flags) {
  return create(handle, flags);
}
aclError aclrtCreateEventExWithFlag(aclrtEvent* handle, uint32_t flags) {
  return create(handle, flags);
}
aclError aclrtDestroyEvent(aclrtEvent handle) {
  trace("aclrtDestroyEvent event=%p", handle);
  delete static_cast<EventPtr*>(handle);
  return ACL_SUCCESS;
}

aclError aclrtRecordEvent(aclrtEvent handle, aclrtStream on) {
  Stream* stream = stream_of(on);
  if (!stream) return fail(ACL_ERROR_RT_INVALID_HANDLE, "an event is recorded on no stream");
  trace("aclrtRecordEvent event=%p stream=%p", handle, on);
  const EventPtr event = event_of(handle);
  if (capture_record(stream, event)) return ACL_SUCCESS;
  auto marker = std::make_shared<Marker>();
  {
    std::lock_guard<std::mutex> hold(event->lock);
    event->last = marker;
    event->graph = nullptr;
  }
  stream->enqueue("aclrtRecordEvent", [marker] {
    marker->reach();
    return ACL_SUCCESS;
  });
  return ACL_SUCCESS;
}

aclError aclrtStreamWaitEvent(aclrtStream on, aclrtEvent handle) {
  Stream* stream = stream_of(on);
  if (!stream) return fail(ACL_ERROR_RT_INVALID_HANDLE, "no stream is to wait for an event");
  trace("aclrtStreamWaitEvent event=%p stream=%p", handle, on);
  const EventPtr event = event_of(handle);
  if (capture_wait(stream, event)) return ACL_SUCCESS;
  if (MarkerPtr marker = last_of(event)) {
    stream->enqueue("aclrtStreamWaitEvent", [marker] {
      marker->wait(-1);
      return ACL_SUCCESS;
    });
  }
  return ACL_SUCCESS;
}

aclError aclrtResetEvent(aclrtEvent handle, aclrtStream on) {
  Stream* stream = stream_of(on);
  if (!stream) return fail(ACL_ERROR_RT_INVALID_HANDLE, "an event is reset on no stream");
  trace("aclrtResetEvent event=%p stream=%p", handle, on);
  const EventPtr event = event_of(handle);
  if (capture_reset(stream, event)) return ACL_SUCCESS;
  stream->enqueue("aclrtResetEvent", [event] {
    std::lock_guard<std::mutex> hold(event->lock);
    event->last = nullptr;
    return ACL_SUCCESS;
  });
  return ACL_SUCCESS;
}

aclError aclrtSynchronizeEvent(aclrtEvent handle) {
  trace("aclrtSynchronizeEvent event=%p", handle);
  if (aclError error = check_present()) return error;
  MarkerPtr marker = last_of(event_of(handle));
  Unlocked unlocked;
  if (marker) marker->wait(-1);
  return ACL_SUCCESS;
}

aclError aclrtQueryEventStatus(aclrtEvent handle, aclrtEventRecordedStatus* status) {
  if (aclError error = check_present()) return error;
  MarkerPtr marker = last_of(event_of(handle));
  *status = marker && marker->reached() ? ACL_EVENT_RECORDED_STATUS_COMPLETE
                                        : ACL_EVENT_RECORDED_STATUS_NOT_READY;
  return ACL_SUCCESS;
}

aclError aclrtQueryEventWaitStatus(aclrtEvent handle, aclrtEventWaitStatus* status) {
  MarkerPtr marker = last_of(event_of(handle));
  *status = !marker || marker->reached() ? ACL_EVENT_WAIT_STATUS_COMPLETE
                                         : ACL_EVENT_WAIT_STATUS_NOT_READY;
  return ACL_SUCCESS;
}

aclError aclrtEventElapsedTime(float* ms, aclrtEvent from, aclrtEvent to) {
  MarkerPtr first = last_of(event_of(from)), last = last_of(event_of(to));
  if (!is_timed(event_of(from)) || !is_timed(event_of(to))) {
    return fail(ACL_ERROR_RT_EVENT_TIMESTAMP_INVALID, "the events were made without times");
  }
  if (!first || !last || !first->reached() || !last->reached()) {
    return fail(ACL_ERROR_RT_EVENT_NOT_COMPLETE, "an event has not been reached");
  }
  *ms = std::chrono::duration<float, std::milli>(last->when() - first->when()).count();
  return ACL_SUCCESS;
}

aclError aclrtEventGetTimestamp(aclrtEvent handle, uint64_t* microseconds) {
  MarkerPtr marker = last_of(event_of(handle));
  if (!marker || !marker->reached()) return ACL_ERROR_RT_EVENT_NOT_COMPLETE;
  *microseconds = std::chrono::duration_cast<std::chrono::microseconds>(
                      marker->when().time_since_epoch()).count();
  return ACL_SUCCESS;
}

}  // extern "C"
