// Device memory that the host cannot read, and host memory that the device knows.
//
// All devices share one reserved range of addresses without any access rights. The simulator's own
// view of it, readable and writable, lies at a constant distance.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <map>
#include <mutex>

#include "sim.h"

namespace sim {

// Disjoint ranges of addresses. Thread-safe.
class Ranges {
 public:
  bool add(uintptr_t start, size_t size);
  size_t remove(uintptr_t start);                     // its size, 0 where none starts there
  bool holds(uintptr_t start, size_t size) const;     // all of it in one range

 private:
  mutable std::mutex lock_;
  std::map<uintptr_t, size_t> held_;
};

// The memory of one device: first fit, in multiples of 2 MiB, up to a limit.
class Arena {
 public:
  static constexpr size_t kGranule = size_t{2} << 20;
  static constexpr size_t kSpan = size_t{64} << 30;  // of addresses, so that none are short

  explicit Arena(int index);
  aclError allocate(size_t size, void** address);
  aclError release(void* address);
  bool charge(size_t size);
  void discharge(size_t size);
  void* reserve(size_t size);  // addresses alone
  bool unreserve(void* address);
  bool map(void* address, size_t size) { return live_.add(reinterpret_cast<uintptr_t>(address), size); }
  bool unmap(void* address) { return live_.remove(reinterpret_cast<uintptr_t>(address)) != 0; }
  bool holds(const void* address, size_t size) const {
    return live_.holds(reinterpret_cast<uintptr_t>(address), size);
  }
  size_t limit() const { return limit_; }
  size_t used() const;

 private:
  const uintptr_t base_;
  const size_t limit_;
  mutable std::mutex lock_;
  size_t used_ = 0;
  std::map<uintptr_t, size_t> taken_;
  Ranges live_;
};

Arena& arena(int index);
Ranges& pinned();
bool in_device_range(const void* address);
int visible_devices();

}  // namespace sim
