// Memory of the simulated devices, cached and reused in the order of its stream as CUDA's is.
//
// Addresses are host addresses with a bit set that no process may use: whoever touches device
// memory without a copy dies by SIGSEGV. Fresh memory is 0xFF, which is NaN and -1.
#pragma once

#include <c10/core/Allocator.h>
#include <c10/util/Exception.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "queue.h"

namespace simdev {

constexpr uintptr_t kTag = uintptr_t{1} << 52;
constexpr size_t kGranule = 4096;

inline void* tagged(void* host) {
  return reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(host) | kTag);
}
inline void* untagged(const void* address) {
  return reinterpret_cast<void*>(reinterpret_cast<uintptr_t>(address) & ~kTag);
}

struct Block {
  void* host;
  size_t size;
  int device;
  int64_t stream;
  std::set<int64_t> users;  // other streams that were recorded on it
};

class Pool {
 public:
  explicit Pool(int index) : index_(index) {
    const char* words = std::getenv("SIMDEV_MEMORY_MB");
    limit_ = (words ? std::strtoull(words, nullptr, 10) : 1024) << 20;
  }

  Block* take(size_t wanted) {
    const size_t size = (wanted + kGranule - 1) / kGranule * kGranule;
    const int64_t stream = current_stream(index_);
    Block* block = reuse(size, stream);
    if (!block) block = make(size, stream, wanted);
    device(index_).queues.at(stream).submit(
        [host = block->host, size] { std::memset(host, 0xFF, size); });
    return block;
  }

  // What comes next on the block's stream may use it, after the work that others have with it.
  void give(Block* block) {
    auto& queues = device(index_).queues;
    for (auto user : block->users) queues.at(block->stream).wait_for(queues.at(user).last());
    block->users.clear();
    std::lock_guard<std::mutex> hold(lock_);
    allocated_ -= block->size;
    idle_.emplace(std::make_pair(block->size, block->stream), block);
  }

  void record(Block* block, int64_t stream) {
    std::lock_guard<std::mutex> hold(lock_);
    if (stream != block->stream) block->users.insert(stream);
  }

  void release_idle() {
    device(index_).synchronize();
    std::lock_guard<std::mutex> hold(lock_);
    for (auto& [key, block] : idle_) {
      reserved_ -= block->size;
      std::free(block->host);
      delete block;
    }
    idle_.clear();
  }

  // allocated, reserved, limit
  std::vector<int64_t> figures() {
    std::lock_guard<std::mutex> hold(lock_);
    return {int64_t(allocated_), int64_t(reserved_), int64_t(limit_)};
  }

 private:
  Block* reuse(size_t size, int64_t stream) {
    std::lock_guard<std::mutex> hold(lock_);
    auto found = idle_.find({size, stream});
    if (found == idle_.end()) return nullptr;
    Block* block = found->second;
    idle_.erase(found);
    allocated_ += size;
    return block;
  }

  Block* make(size_t size, int64_t stream, size_t wanted) {
    if (!fits(size)) release_idle();
    std::lock_guard<std::mutex> hold(lock_);
    void* host = reserved_ + size <= limit_ && size >= wanted
        ? std::aligned_alloc(kGranule, size) : nullptr;
    TORCH_CHECK_WITH(
        OutOfMemoryError, host, "simdev:", index_, " is out of memory: ", wanted,
        " bytes were requested, ", limit_ - reserved_, " of ", limit_, " are free");
    allocated_ += size;
    reserved_ += size;
    return new Block{host, size, index_, stream, {}};
  }

  bool fits(size_t size) {
    std::lock_guard<std::mutex> hold(lock_);
    return reserved_ + size <= limit_;
  }

  const int index_;
  size_t limit_;
  std::mutex lock_;
  std::multimap<std::pair<size_t, int64_t>, Block*> idle_;
  size_t allocated_ = 0;
  size_t reserved_ = 0;
};

inline Pool& pool(int index) {
  static auto* pools = new std::array<Pool, kDevices>{Pool(0), Pool(1)};
  return pools->at(index);
}

class DeviceAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t size) override {
    const int index = current_device();
    const c10::Device where(c10::DeviceType::PrivateUse1, index);
    if (!size) return {nullptr, where};
    Block* block = pool(index).take(size);
    return {tagged(block->host), block, &release, where};
  }
  void copy_data(void* to, const void* from, size_t size) const override {
    auto work = [=] { std::memmove(untagged(to), untagged(from), size); };
    current_queue(current_device()).submit(work)->wait();
  }
  static void release(void* context) {
    auto* block = static_cast<Block*>(context);
    pool(block->device).give(block);
  }
};

// Host memory that copies may use without the host's waiting for them.
class PinnedAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t size) override {
    void* memory = std::aligned_alloc(kGranule, (size / kGranule + 1) * kGranule);
    TORCH_CHECK_WITH(OutOfMemoryError, memory, "the host has no ", size, " bytes to pin");
    std::lock_guard<std::mutex> hold(lock());
    ranges()[reinterpret_cast<uintptr_t>(memory)] = std::max<size_t>(size, 1);
    return {memory, memory, &release, c10::Device(c10::DeviceType::CPU)};
  }
  void copy_data(void* to, const void* from, size_t size) const override {
    default_copy_data(to, from, size);
  }
  // Memory of others, whose owner keeps it until it is taken out again.
  static void add(uintptr_t place, size_t size) {
    std::lock_guard<std::mutex> hold(lock());
    auto next = ranges().lower_bound(place);
    bool taken = next != ranges().end() && next->first < place + size;
    if (next != ranges().begin()) taken |= place < std::prev(next)->first + std::prev(next)->second;
    TORCH_CHECK(!taken, "part or all of the requested memory range is already mapped");
    ranges()[place] = size;
  }
  static void remove(uintptr_t place) {
    std::lock_guard<std::mutex> hold(lock());
    TORCH_CHECK(ranges().erase(place), "the memory is not registered");
  }
  static bool owns(const void* address) {
    const auto place = reinterpret_cast<uintptr_t>(address);
    std::lock_guard<std::mutex> hold(lock());
    auto next = ranges().upper_bound(place);
    if (next == ranges().begin()) return false;
    --next;
    return place < next->first + next->second;
  }

 private:
  static void release(void* memory) {
    std::lock_guard<std::mutex> hold(lock());
    ranges().erase(reinterpret_cast<uintptr_t>(memory));
    std::free(memory);
  }
  static std::map<uintptr_t, size_t>& ranges() {
    static auto* held = new std::map<uintptr_t, size_t>();
    return *held;
  }
  static std::mutex& lock() {
    static auto* made = new std::mutex();
    return *made;
  }
};

}  // namespace simdev
