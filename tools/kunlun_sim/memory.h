// The memory of a device: counted, limited, and full of what no caller can take for zeros.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>

namespace kunlun_sim {

constexpr size_t kGranule = 4096;

// Addresses of device memory carry a bit that no process may use: whoever takes one for the host's
// memory does not get far.
constexpr uintptr_t kTag = uintptr_t{1} << 62;

inline void* tagged(void* memory) {
  return reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(memory) | kTag);
}
inline void* untagged(const void* address) {
  return reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(address) & ~kTag);
}

class Memory {
 public:
  // KUNLUN_SIM_MEMORY_MB is each device's, 1024 where it is not set.
  Memory() {
    const char* words = std::getenv("KUNLUN_SIM_MEMORY_MB");
    total_ = (words ? std::strtoull(words, nullptr, 10) : 1024) << 20;
  }

  // Null where it would exceed the limit.
  void* take(size_t wanted) {
    const size_t size = (wanted + kGranule - 1) / kGranule * kGranule;
    std::lock_guard<std::mutex> hold(lock_);
    if (size < wanted || size > total_ - used_) return nullptr;
    void* memory = std::aligned_alloc(kGranule, size);
    if (!memory) return nullptr;
    std::memset(memory, 0xFF, size);  // NaN in every floating type
    blocks_[tagged(memory)] = size;
    used_ += size;
    return tagged(memory);
  }

  // False for an address that was not taken from here, or was given back already.
  bool give(void* memory) {
    std::lock_guard<std::mutex> hold(lock_);
    auto found = blocks_.find(memory);
    if (found == blocks_.end()) return false;
    used_ -= found->second;
    blocks_.erase(found);
    std::free(untagged(memory));
    return true;
  }

  // Whether all of the range is in one block of this device; nothing is everywhere.
  bool owns(const void* start, size_t size) {
    if (!size) return true;
    const auto place = reinterpret_cast<uintptr_t>(start);
    std::lock_guard<std::mutex> hold(lock_);
    auto next = blocks_.upper_bound(const_cast<void*>(start));
    if (next == blocks_.begin()) return false;
    const auto& [begin, length] = *std::prev(next);
    return place + size <= reinterpret_cast<uintptr_t>(begin) + length;
  }

  size_t total() const { return total_; }
  size_t free_bytes() {
    std::lock_guard<std::mutex> hold(lock_);
    return total_ - used_;
  }

 private:
  size_t total_;
  std::mutex lock_;
  std::map<void*, size_t> blocks_;
  size_t used_ = 0;
};

}  // namespace kunlun_sim
