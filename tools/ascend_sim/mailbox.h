// Transfers between the processes of one machine, through shared memory: one mailbox for each
// ordered pair of ranks, which holds a chunk at a time.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

namespace sim {

struct Mailbox {
  static constexpr uint64_t kRoom = 256 << 10;
  std::atomic<uint32_t> full;
  uint32_t kind;
  uint64_t total, bytes;
  char data[kRoom];
};

// One message on its way.
struct Transfer {
  bool sends;
  uint32_t peer;
  char* at;
  uint64_t left;
  uint64_t total = left;
};

class Mailboxes {
 public:
  // Waits until all ranks are there; false when they are not within the time.
  bool join(const std::string& name, uint32_t ranks, uint32_t rank, int timeout_s);
  // Carries all of the messages, of one kind. An error's text, empty where all went well.
  std::string run(std::vector<Transfer> transfers, uint32_t kind, int timeout_s);
  void abort() { aborted_ = true; }
  void leave();

  uint32_t ranks = 0, rank = 0;

 private:
  struct Shared {
    std::atomic<uint32_t> joined;
    Mailbox boxes[];
  };
  Mailbox& box(uint32_t from, uint32_t to) { return shared_->boxes[from * ranks + to]; }
  bool step(Transfer& transfer, uint32_t kind, std::string* wrong);

  Shared* shared_ = nullptr;
  size_t size_ = 0;
  std::atomic<bool> aborted_{false};
};

}  // namespace sim
