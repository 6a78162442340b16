// Allocation, on devices and of host memory that they know.

#include "memory.h"

#include <sys/mman.h>

#include <array>
#include <cstdlib>
#include <cstring>

namespace sim {
namespace {

constexpr size_t kAll = Arena::kSpan * kDevices;
constexpr size_t kPoisoned = size_t{32} << 20;

uintptr_t device_base() {
  static const auto base = [] {
    void* whole = mmap(nullptr, 2 * kAll, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (whole == MAP_FAILED) std::abort();
    mprotect(static_cast<char*>(whole) + kAll, kAll, PROT_READ | PROT_WRITE);
    return reinterpret_cast<uintptr_t>(whole);
  }();
  return base;
}

size_t rounded(size_t size) {
  return (size + Arena::kGranule - 1) / Arena::kGranule * Arena::kGranule;
}

}  // namespace

bool Ranges::add(uintptr_t start, size_t size) {
  std::lock_guard<std::mutex> hold(lock_);
  auto next = held_.lower_bound(start);
  if (next != held_.end() && next->first < start + size) return false;
  if (next != held_.begin() && std::prev(next)->first + std::prev(next)->second > start) return false;
  held_[start] = size;
  return true;
}

size_t Ranges::remove(uintptr_t start) {
  std::lock_guard<std::mutex> hold(lock_);
  auto found = held_.find(start);
  if (found == held_.end()) return 0;
  const size_t size = found->second;
  held_.erase(found);
  return size;
}

bool Ranges::holds(uintptr_t start, size_t size) const {
  std::lock_guard<std::mutex> hold(lock_);
  auto next = held_.upper_bound(start);
  if (next == held_.begin()) return false;
  --next;
  // Segments that were mapped side by side are one piece to whoever copies.
  uintptr_t end = next->first + next->second;
  while (end < start + size && ++next != held_.end() && next->first == end) end += next->second;
  return start < end && start + size <= end;
}

Arena::Arena(int index)
    : base_(device_base() + index * kSpan),
      limit_(static_cast<size_t>(setting("ASCEND_SIM_MEMORY_MB", 2048)) << 20) {}

size_t Arena::used() const {
  std::lock_guard<std::mutex> hold(lock_);
  return used_;
}

bool Arena::charge(size_t size) {
  std::lock_guard<std::mutex> hold(lock_);
  if (size > limit_ - used_) return false;
  used_ += size;
  return true;
}

void Arena::discharge(size_t size) {
  std::lock_guard<std::mutex> hold(lock_);
  used_ -= size;
}

void* Arena::reserve(size_t size) {
  std::lock_guard<std::mutex> hold(lock_);
  const size_t wanted = rounded(size);
  uintptr_t start = base_;
  for (const auto& [other, length] : taken_) {
    if (other - start >= wanted) break;
    start = other + length;
  }
  if (start + wanted > base_ + kSpan) return nullptr;
  taken_[start] = wanted;
  return reinterpret_cast<void*>(start);
}

bool Arena::unreserve(void* address) {
  std::lock_guard<std::mutex> hold(lock_);
  auto found = taken_.find(reinterpret_cast<uintptr_t>(address));
  if (found == taken_.end()) return false;
  madvise(host_view(address), found->second, MADV_DONTNEED);
  taken_.erase(found);
  return true;
}

aclError Arena::allocate(size_t size, void** address) {
  const size_t wanted = rounded(size);
  if (!size || !charge(wanted)) return ACL_ERROR_RT_MEMORY_ALLOCATION;
  *address = reserve(wanted);
  if (!*address) return ACL_ERROR_RT_MEMORY_ALLOCATION;
  map(*address, wanted);
  // Fresh memory holds anything: NaN shows whoever reads it. Large blocks would take too long.
  if (wanted <= kPoisoned) std::memset(host_view(*address), 0xff, wanted);
  return ACL_SUCCESS;
}

aclError Arena::release(void* address) {
  const size_t size = live_.remove(reinterpret_cast<uintptr_t>(address));
  if (!size || !unreserve(address)) return ACL_ERROR_RT_PARAM_INVALID;
  discharge(size);
  return ACL_SUCCESS;
}

Arena& arena(int index) {
  static auto* made = new std::array<Arena, kDevices>{Arena(0), Arena(1)};
  return made->at(index);
}

Ranges& pinned() {
  static auto* made = new Ranges();
  return *made;
}

bool in_device_range(const void* address) {
  return reinterpret_cast<uintptr_t>(address) - device_base() < kAll;
}

void* host_view(const void* address) {
  return in_device_range(address) ? reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(address) + kAll)
                                  : const_cast<void*>(address);
}

int device_of(const void* address, size_t size) {
  for (int index = 0; index < kDevices; ++index) {
    if (arena(index).holds(address, size)) return index;
  }
  return -1;
}

}  // namespace sim

using namespace sim;

namespace {

aclError allocate(void** address, size_t size) {
  if (current_device() < 0) return ACL_ERROR_RT_CONTEXT_NULL;
  Arena& here = arena(current_device());
  const aclError error = here.allocate(size, address);
  if (error) {
    return fail(error, std::to_string(size) + " bytes were requested, " +
                           std::to_string(here.limit() - here.used()) + " are free");
  }
  trace("aclrtMalloc device=%d bytes=%zu", current_device(), size);
  return ACL_SUCCESS;
}

}  // namespace

extern "C" {

aclError aclrtMalloc(void** address, size_t size, aclrtMemMallocPolicy) {
  return allocate(address, size);
}
aclError aclrtMallocAlign32(void** address, size_t size, aclrtMemMallocPolicy) {
  return allocate(address, size);
}

aclError aclrtFree(void* address) {
  for (int index = 0; index < kDevices; ++index) {
    if (!arena(index).release(address)) {
      trace("aclrtFree device=%d", index);
      return ACL_SUCCESS;
    }
  }
  return fail(ACL_ERROR_RT_PARAM_INVALID, "aclrtFree of what is no allocation");
}

aclError aclrtGetMemInfo(aclrtMemAttr, size_t* free, size_t* total) {
  if (current_device() < 0) return ACL_ERROR_RT_CONTEXT_NULL;
  const Arena& here = arena(current_device());
  *total = here.limit();
  *free = here.limit() - here.used();
  return ACL_SUCCESS;
}

aclError aclrtMallocHost(void** address, size_t size) {
  *address = std::aligned_alloc(4096, (size / 4096 + 1) * 4096);
  if (!*address) return ACL_ERROR_RT_MEMORY_ALLOCATION;
  pinned().add(reinterpret_cast<uintptr_t>(*address), size);
  trace("aclrtMallocHost bytes=%zu", size);
  return ACL_SUCCESS;
}

aclError aclrtFreeHost(void* address) {
  if (!pinned().remove(reinterpret_cast<uintptr_t>(address))) {
    return fail(ACL_ERROR_RT_PARAM_INVALID, "aclrtFreeHost of what is no allocation");
  }
  std::free(address);
  trace("aclrtFreeHost");
  return ACL_SUCCESS;
}

aclError aclrtHostRegisterV2(void* address, uint64_t size, uint32_t flags) {
  if (!size || reinterpret_cast<uintptr_t>(address) % 4096) {
    return fail(ACL_ERROR_RT_PARAM_INVALID, "registered memory starts at a page");
  }
  if (!pinned().add(reinterpret_cast<uintptr_t>(address), size)) {
    return fail(ACL_ERROR_RT_PARAM_INVALID, "part of the memory is registered already");
  }
  trace("aclrtHostRegister bytes=%zu flags=%u", static_cast<size_t>(size), flags);
  return ACL_SUCCESS;
}

aclError aclrtHostRegister(void* address, uint64_t size, aclrtHostRegisterType type, void** device) {
  const aclError error = aclrtHostRegisterV2(address, size, static_cast<uint32_t>(type));
  if (!error && device) *device = address;
  return error;
}

aclError aclrtHostUnregister(void* address) {
  if (!pinned().remove(reinterpret_cast<uintptr_t>(address))) {
    return fail(ACL_ERROR_RT_PARAM_INVALID, "no registered memory starts there");
  }
  trace("aclrtHostUnregister");
  return ACL_SUCCESS;
}

aclError aclrtPointerGetAttributes(const void* address, aclrtPtrAttributes* found) {
  *found = {};
  const int index = device_of(address, 1);
  const bool known = pinned().holds(reinterpret_cast<uintptr_t>(address), 1);
  found->location.id = index < 0 ? 0 : index;
  found->location.type = index >= 0 ? ACL_MEM_LOCATION_TYPE_DEVICE
                         : known    ? ACL_MEM_LOCATION_TYPE_HOST
                                    : ACL_MEM_LOCATION_TYPE_UNREGISTERED;
  found->pageSize = 4096;
  return ACL_SUCCESS;
}

}  // extern "C"
