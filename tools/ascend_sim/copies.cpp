// Copies and fills. Addresses are checked when a copy is queued and again when it runs: memory that
// was given back in between belongs to somebody else.

#include <cstring>
#include <vector>

#include "memory.h"
#include "streams.h"

namespace sim {
namespace {

enum class Place { kDevice, kPinned, kPageable, kNowhere };

struct End {
  Place place;
  int device;
};

End end_of(const void* address, size_t size) {
  if (in_device_range(address)) {
    const int index = device_of(address, size);
    return {index < 0 ? Place::kNowhere : Place::kDevice, index};
  }
  const bool known = pinned().holds(reinterpret_cast<uintptr_t>(address), size);
  return {known ? Place::kPinned : Place::kPageable, -1};
}

const char* word(End end) {
  switch (end.place) {
    case Place::kDevice: return end.device ? "device:1" : "device:0";
    case Place::kPinned: return "pinned";
    case Place::kPageable: return "pageable";
    default: return "nowhere";
  }
}

bool fits(aclrtMemcpyKind kind, End to, End from) {
  const bool into = to.place == Place::kDevice, out = from.place == Place::kDevice;
  switch (kind) {
    case ACL_MEMCPY_HOST_TO_HOST: return !into && !out;
    case ACL_MEMCPY_HOST_TO_DEVICE:
    case ACL_MEMCPY_HOST_TO_BUF_TO_DEVICE: return into && !out;
    case ACL_MEMCPY_DEVICE_TO_HOST: return !into && out;
    case ACL_MEMCPY_DEVICE_TO_DEVICE: return into && out;
    case ACL_MEMCPY_INNER_DEVICE_TO_DEVICE: return into && out && to.device == from.device;
    case ACL_MEMCPY_INTER_DEVICE_TO_DEVICE: return into && out && to.device != from.device;
    default: return true;
  }
}

struct Copy {
  void* to;
  size_t room;
  const void* from;
  size_t size;
  aclrtMemcpyKind kind;

  aclError check(End* target, End* source) const {
    *target = end_of(to, size);
    *source = end_of(from, size);
    if (size > room) return fail(ACL_ERROR_RT_PARAM_INVALID, "a copy is larger than its target");
    if (target->place == Place::kNowhere || source->place == Place::kNowhere) {
      return fail(ACL_ERROR_RT_PARAM_INVALID, "a copy touches memory that is not allocated");
    }
    if (!fits(kind, *target, *source)) {
      return fail(ACL_ERROR_RT_INVALID_MEMORY_TYPE,
                  std::string("a copy from ") + word(*source) + " to " + word(*target) +
                      " is not of kind " + std::to_string(kind));
    }
    return ACL_SUCCESS;
  }
  aclError run() const {
    End target, source;
    if (aclError error = check(&target, &source)) return error;
    std::memmove(host_view(to), host_view(from), size);
    return ACL_SUCCESS;
  }
};

aclError queue_staged(const Copy& copy, aclrtStream handle) {
  const auto* bytes = static_cast<const char*>(copy.from);
  return submit(handle, "aclrtMemcpyAsync", [copy, staged = std::vector<char>(bytes, bytes + copy.size)] {
    Copy now = copy;
    now.from = staged.data();
    return now.run();
  });
}

// Of pageable memory the runtime makes a synchronous copy, behind the work of the stream. torch_npu's
// queue may not wait for a stream here (see Unlocked): it reads the host's memory before it goes on.
aclError queue(const Copy& copy, aclrtStream handle) {
  End target, source;
  if (aclError error = copy.check(&target, &source)) return error;
  const bool waits = target.place == Place::kPageable || source.place == Place::kPageable;
  trace("aclrtMemcpyAsync stream=%p from=%s to=%s bytes=%zu", handle, word(source), word(target),
        copy.size);
  Stream* stream = stream_of(handle);
  if (!stream) return fail(ACL_ERROR_RT_INVALID_HANDLE, "a copy on no stream");
  if (waits) {
    if (aclError error = refuse_while_capturing(stream, "a copy of pageable memory")) return error;
  }
  if (!waits) return submit(handle, "aclrtMemcpyAsync", [copy] { return copy.run(); });
  trace("pageable copy waited stream=%p", handle);
  Unlocked unlocked;
  if (source.place == Place::kPageable && !unlocked.held()) return queue_staged(copy, handle);
  const aclError error = submit(handle, "aclrtMemcpyAsync", [copy] { return copy.run(); });
  if (error) return error;
  return stream->mark()->wait(-1) ? ACL_SUCCESS : ACL_ERROR_RT_INTERNAL_ERROR;
}

aclError check_fill(void* address, size_t room, size_t size) {
  if (size > room || end_of(address, size).place != Place::kDevice) {
    return fail(ACL_ERROR_RT_PARAM_INVALID, "a fill of what is not allocated");
  }
  return ACL_SUCCESS;
}

}  // namespace
}  // namespace sim

using namespace sim;

extern "C" {

aclError aclrtMemcpy(void* to, size_t room, const void* from, size_t size, aclrtMemcpyKind kind) {
  const Copy copy{to, room, from, size, kind};
  End target, source;
  if (aclError error = copy.check(&target, &source)) return error;
  trace("aclrtMemcpy from=%s to=%s bytes=%zu", word(source), word(target), size);
  return copy.run();
}

aclError aclrtMemcpyAsync(void* to, size_t room, const void* from, size_t size,
                          aclrtMemcpyKind kind, aclrtStream stream) {
  return queue({to, room, from, size, kind}, stream);
}

aclError aclrtMemcpyBatchAsync(void** to, size_t* rooms, void** from, size_t* sizes, size_t count,
                               aclrtMemcpyBatchAttr*, size_t*, size_t, size_t* failed,
                               aclrtStream stream) {
  trace("aclrtMemcpyBatchAsync stream=%p copies=%zu", stream, count);
  for (size_t at = 0; at < count; ++at) {
    const Copy copy{to[at], rooms[at], from[at], sizes[at], ACL_MEMCPY_DEFAULT};
    if (aclError error = queue(copy, stream)) {
      if (failed) *failed = at;
      return error;
    }
  }
  return ACL_SUCCESS;
}

aclError aclrtMemset(void* address, size_t room, int32_t value, size_t size) {
  if (aclError error = check_fill(address, room, size)) return error;
  trace("aclrtMemset bytes=%zu", size);
  std::memset(host_view(address), value, size);
  return ACL_SUCCESS;
}

aclError aclrtMemsetAsync(void* address, size_t room, int32_t value, size_t size,
                          aclrtStream stream) {
  if (aclError error = check_fill(address, room, size)) return error;
  trace("aclrtMemsetAsync stream=%p bytes=%zu", stream, size);
  return submit(stream, "aclrtMemsetAsync", [=] {
    if (aclError error = check_fill(address, room, size)) return error;
    std::memset(host_view(address), value, size);
    return ACL_SUCCESS;
  });
}

}  // extern "C"
