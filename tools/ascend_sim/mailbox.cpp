#include "mailbox.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>

namespace sim {
namespace {

using Clock = std::chrono::steady_clock;

// Calls `step` until it is done; false when the time is over first.
template <typename Step>
bool until(int timeout_s, const Step& step) {
  const auto deadline = Clock::now() + std::chrono::seconds(timeout_s);
  for (int idle = 0; !step(); ++idle) {
    if (Clock::now() > deadline) return false;
    if (idle < 50) std::this_thread::yield();
    else std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
  return true;
}

}  // namespace

bool Mailboxes::join(const std::string& name, uint32_t count, uint32_t mine, int timeout_s) {
  ranks = count;
  rank = mine;
  size_ = sizeof(Shared) + sizeof(Mailbox) * ranks * ranks;
  const int file = shm_open(name.c_str(), O_CREAT | O_RDWR, 0600);
  if (file < 0 || ftruncate(file, static_cast<off_t>(size_))) return false;
  void* memory = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  if (memory == MAP_FAILED) return false;
  shared_ = static_cast<Shared*>(memory);
  if (shared_->joined.fetch_add(1) + 1 == ranks) shm_unlink(name.c_str());
  const bool complete = until(timeout_s, [this] { return shared_->joined.load() >= ranks; });
  if (!complete) shm_unlink(name.c_str());
  return complete;
}

void Mailboxes::leave() {
  if (shared_) munmap(shared_, size_);
  shared_ = nullptr;
}

std::string Mailboxes::run(std::vector<Transfer> transfers, uint32_t kind, int timeout_s) {
  std::string wrong;
  const bool done = until(timeout_s, [&] {
    for (Transfer& transfer : transfers) {
      // Messages between the same two go in their order.
      const bool first = &transfer == &*std::find_if(transfers.begin(), transfers.end(), [&](auto& other) {
        return other.left && other.peer == transfer.peer && other.sends == transfer.sends;
      });
      while (first && transfer.left && step(transfer, kind, &wrong)) {}
    }
    return aborted_ || !wrong.empty() ||
           std::all_of(transfers.begin(), transfers.end(), [](auto& item) { return !item.left; });
  });
  if (aborted_) return "the communicator was destroyed";
  if (!done) return "a peer did not come within " + std::to_string(timeout_s) + " s";
  return wrong;
}

// Moves one chunk, where the mailbox is ready for it.
bool Mailboxes::step(Transfer& transfer, uint32_t kind, std::string* wrong) {
  Mailbox& mail = transfer.sends ? box(rank, transfer.peer) : box(transfer.peer, rank);
  if (mail.full.load(std::memory_order_acquire) == transfer.sends) return false;
  if (transfer.sends) {
    mail.kind = kind;
    mail.total = transfer.total;
    mail.bytes = std::min(transfer.left, Mailbox::kRoom);
    std::memcpy(mail.data, transfer.at, mail.bytes);
  } else if (mail.kind != kind || mail.total != transfer.total) {
    *wrong = "rank " + std::to_string(transfer.peer) + " sends another message";
    return false;
  } else {
    std::memcpy(transfer.at, mail.data, mail.bytes);
  }
  transfer.at += mail.bytes;
  transfer.left -= mail.bytes;
  mail.full.store(transfer.sends, std::memory_order_release);
  return true;
}

}  // namespace sim
