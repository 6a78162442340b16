// What the parts of the simulator share. One copy of it lives in libascendcl.so.
#pragma once

#include <acl/acl.h>
#include <acl/error_codes/rt_error_codes.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include "trace.h"

namespace sim {

using Work = std::function<aclError()>;

constexpr int kDevices = 2;

// The number that an environment variable holds.
long setting(const char* name, long otherwise);

// The device of this thread, -1 before one was chosen.
int current_device();

// Keep what an error is about, for aclGetRecentErrMsg; returns the code.
aclError fail(aclError code, const std::string& text);

// Queue work on a stream, or add it to the graph that the stream captures.
aclError submit(aclrtStream stream, const char* name, Work work);

// The simulator's own view of device memory, which the host cannot read at its address.
void* host_view(const void* device_address);

// Whether all of a range is allocated on a device; its index or -1.
int device_of(const void* address, size_t size);

// Release Python's lock, where this thread holds it, as long as it waits: work of streams may need
// it, which is the simulation's and no real device's. A thread that does not hold it may be waited for
// by the one that does, so that it may not wait for a stream at all.
class Unlocked {
 public:
  Unlocked();
  ~Unlocked();
  bool held() const { return state_ != nullptr; }
  Unlocked(const Unlocked&) = delete;
  Unlocked& operator=(const Unlocked&) = delete;

 private:
  void* state_ = nullptr;
};

}  // namespace sim

extern "C" {
// Read the trace since the last call; the text belongs to the caller, who gives it to free().
char* ascend_sim_take_trace();
void ascend_sim_note(const char* line);
// From now on every device answers with this error; 0 ends it.
void ascend_sim_lose(int error);
}
