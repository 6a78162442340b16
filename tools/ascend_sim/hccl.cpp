// Collectives between the processes of one machine, each as work of the stream that it is given.
//
// Sums are made in the order of ranks, in fp32 for half types, so that every rank has the same bits.

#include <hccl/hccl.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <memory>
#include <mutex>

#include "mailbox.h"
#include "reduce.h"
#include "sim.h"

namespace sim {
namespace {

struct Comm {
  Mailboxes mail;
  std::mutex lock;  // one collective at a time
  std::atomic<bool> failed{false};
  std::string name;
  int timeout_s = 0;  // of one collective
};

Comm* comm_of(HcclComm handle) { return static_cast<Comm*>(handle); }

uint64_t size_of(HcclDataType type) {
  switch (type) {
    case HCCL_DATA_TYPE_INT8:
    case HCCL_DATA_TYPE_UINT8: return 1;
    case HCCL_DATA_TYPE_INT16:
    case HCCL_DATA_TYPE_UINT16:
    case HCCL_DATA_TYPE_FP16:
    case HCCL_DATA_TYPE_BFP16: return 2;
    case HCCL_DATA_TYPE_INT64:
    case HCCL_DATA_TYPE_UINT64:
    case HCCL_DATA_TYPE_FP64: return 8;
    default: return 4;
  }
}

enum Kind : uint32_t { kAllReduce, kAllGather, kReduceScatter, kBroadcast, kAlltoAll, kMessage };

using Body = std::function<std::string(Comm&, int timeout_s)>;

HcclResult queue(const char* name, HcclComm handle, aclrtStream stream, Body body) {
  Comm* comm = comm_of(handle);
  if (!comm) return HCCL_E_PTR;
  trace("%s stream=%p rank=%u", name, stream, comm->mail.rank);
  const aclError error = submit(stream, name, [comm, name, body = std::move(body)]() -> aclError {
    std::lock_guard<std::mutex> hold(comm->lock);
    const std::string wrong = body(*comm, comm->timeout_s);
    if (wrong.empty()) return ACL_SUCCESS;
    comm->failed = true;
    return fail(ACL_ERROR_RT_TASK_TIMEOUT, std::string(name) + ": " + wrong);
  });
  return error ? HCCL_E_RUNTIME : HCCL_SUCCESS;
}

char* view(const void* address) { return static_cast<char*>(host_view(address)); }

// Every rank sends `part` bytes of its own to every other, from `from` on and `stride` apart, and
// has what came to it side by side in `into`.
std::string everyone(Comm& comm, Kind kind, const char* from, uint64_t stride, char* into,
                     uint64_t part, int timeout_s) {
  std::vector<Transfer> transfers;
  for (uint32_t peer = 0; peer < comm.mail.ranks; ++peer) {
    char* mine = const_cast<char*>(from) + peer * stride;
    if (peer == comm.mail.rank) {
      std::memmove(into + peer * part, mine, part);
    } else {
      transfers.push_back({true, peer, mine, part});
      transfers.push_back({false, peer, into + peer * part, part});
    }
  }
  return comm.mail.run(transfers, kind, timeout_s);
}

// Reduces what the ranks have for this one, `stride` apart in their memory.
std::string reduced(Comm& comm, Kind kind, const void* from, uint64_t stride, void* into,
                    uint64_t count, HcclDataType type, HcclReduceOp op, int timeout_s) {
  const uint64_t part = count * size_of(type);
  std::vector<char> all(part * comm.mail.ranks);
  const std::string wrong = everyone(comm, kind, view(from), stride, all.data(), part, timeout_s);
  if (!wrong.empty()) return wrong;
  std::vector<const char*> parts;
  for (uint32_t rank = 0; rank < comm.mail.ranks; ++rank) parts.push_back(all.data() + rank * part);
  reduce(view(into), parts, count, type, op);
  return "";
}

HcclResult join(uint32_t ranks, const HcclRootInfo* root, uint32_t rank, int timeout_s,
                HcclComm* handle) {
  auto made = std::make_unique<Comm>();
  made->name = root->internal;
  made->timeout_s = timeout_s > 0 ? timeout_s : static_cast<int>(setting("HCCL_EXEC_TIMEOUT", 1836));
  trace("HcclCommInitRootInfo rank=%u ranks=%u timeout=%d", rank, ranks, made->timeout_s);
  Unlocked unlocked;
  if (!made->mail.join(made->name, ranks, rank, static_cast<int>(setting("HCCL_CONNECT_TIMEOUT", 120)))) {
    return HCCL_E_TIMEOUT;
  }
  *handle = made.release();
  return HCCL_SUCCESS;
}

}  // namespace
}  // namespace sim

using namespace sim;

extern "C" {

HcclResult HcclGetRootInfo(HcclRootInfo* root) {
  static std::atomic<int> made{0};
  std::snprintf(root->internal, sizeof root->internal, "/ascend_sim-%d-%d", getpid(), ++made);
  return HCCL_SUCCESS;
}

HcclResult HcclCommInitRootInfo(uint32_t ranks, const HcclRootInfo* root, uint32_t rank,
                                HcclComm* comm) {
  return join(ranks, root, rank, 0, comm);
}
HcclResult HcclCommInitRootInfoConfig(uint32_t ranks, const HcclRootInfo* root, uint32_t rank,
                                      const HcclCommConfig* config, HcclComm* comm) {
  return join(ranks, root, rank, config->hcclExecTimeOut, comm);
}
uint32_t HcclGetCommConfigCapability() { return HCCL_COMM_CONFIG_RESERVED; }
HcclResult HcclSetConfig(HcclConfig, HcclConfigValue) { return HCCL_SUCCESS; }

HcclResult HcclGetCommName(HcclComm comm, char* name) {
  std::strcpy(name, comm_of(comm)->name.c_str());
  return HCCL_SUCCESS;
}

HcclResult HcclGetCommAsyncError(HcclComm comm, HcclResult* error) {
  *error = comm_of(comm)->failed ? HCCL_E_REMOTE : HCCL_SUCCESS;
  return HCCL_SUCCESS;
}

// Work under way ends with an error. The communicator's memory is kept: its streams may still look.
HcclResult HcclCommDestroy(HcclComm handle) {
  Comm* comm = comm_of(handle);
  trace("HcclCommDestroy rank=%u", comm->mail.rank);
  comm->mail.abort();
  Unlocked unlocked;
  std::lock_guard<std::mutex> hold(comm->lock);
  comm->mail.leave();
  return HCCL_SUCCESS;
}

HcclResult HcclAllReduce(void* from, void* into, uint64_t count, HcclDataType type, HcclReduceOp op,
                         HcclComm comm, aclrtStream stream) {
  if (!reduces(type, op)) return HCCL_E_NOT_SUPPORT;
  return queue("HcclAllReduce", comm, stream, [=](Comm& with, int timeout_s) {
    return reduced(with, kAllReduce, from, 0, into, count, type, op, timeout_s);
  });
}

HcclResult HcclReduceScatter(void* from, void* into, uint64_t count, HcclDataType type,
                             HcclReduceOp op, HcclComm comm, aclrtStream stream) {
  if (!reduces(type, op)) return HCCL_E_NOT_SUPPORT;
  return queue("HcclReduceScatter", comm, stream, [=](Comm& with, int timeout_s) {
    const uint64_t part = count * size_of(type);
    return reduced(with, kReduceScatter, from, part, into, count, type, op, timeout_s);
  });
}

HcclResult HcclAllGather(void* from, void* into, uint64_t count, HcclDataType type, HcclComm comm,
                         aclrtStream stream) {
  return queue("HcclAllGather", comm, stream, [=](Comm& with, int timeout_s) {
    return everyone(with, kAllGather, view(from), 0, view(into), count * size_of(type), timeout_s);
  });
}

HcclResult HcclAlltoAll(const void* from, uint64_t count, HcclDataType type, const void* into,
                        uint64_t, HcclDataType, HcclComm comm, aclrtStream stream) {
  return queue("HcclAlltoAll", comm, stream, [=](Comm& with, int timeout_s) {
    const uint64_t part = count * size_of(type);
    return everyone(with, kAlltoAll, view(from), part, view(into), part, timeout_s);
  });
}

HcclResult HcclAlltoAllV(const void* from, const void* counts, const void* starts, HcclDataType type,
                         const void* into, const void* in_counts, const void* in_starts,
                         HcclDataType, HcclComm comm, aclrtStream stream) {
  const uint32_t ranks = comm_of(comm)->mail.ranks;
  auto copied = [ranks](const void* list) {
    const auto* first = static_cast<const uint64_t*>(list);
    return std::vector<uint64_t>(first, first + ranks);
  };
  return queue("HcclAlltoAllV", comm, stream,
               [=, out = copied(counts), out_at = copied(starts), in = copied(in_counts),
                in_at = copied(in_starts)](Comm& with, int timeout_s) {
    const uint64_t each = size_of(type);
    std::vector<Transfer> transfers;
    for (uint32_t peer = 0; peer < ranks; ++peer) {
      char* mine = view(from) + out_at[peer] * each;
      char* theirs = view(into) + in_at[peer] * each;
      if (peer == with.mail.rank) {
        std::memmove(theirs, mine, out[peer] * each);
      } else {
        transfers.push_back({true, peer, mine, out[peer] * each});
        transfers.push_back({false, peer, theirs, in[peer] * each});
      }
    }
    return with.mail.run(transfers, kAlltoAll, timeout_s);
  });
}

HcclResult HcclBroadcast(void* buffer, uint64_t count, HcclDataType type, uint32_t root,
                         HcclComm comm, aclrtStream stream) {
  return queue("HcclBroadcast", comm, stream, [=](Comm& with, int timeout_s) {
    const uint64_t bytes = count * size_of(type);
    std::vector<Transfer> transfers;
    for (uint32_t peer = 0; peer < with.mail.ranks; ++peer) {
      if (with.mail.rank == root && peer != root) transfers.push_back({true, peer, view(buffer), bytes});
    }
    if (with.mail.rank != root) transfers.push_back({false, root, view(buffer), bytes});
    return with.mail.run(transfers, kBroadcast, timeout_s);
  });
}

HcclResult HcclSend(void* from, uint64_t count, HcclDataType type, uint32_t peer, HcclComm comm,
                    aclrtStream stream) {
  return queue("HcclSend", comm, stream, [=](Comm& with, int timeout_s) {
    return with.mail.run({{true, peer, view(from), count * size_of(type)}}, kMessage, timeout_s);
  });
}

HcclResult HcclRecv(void* into, uint64_t count, HcclDataType type, uint32_t peer, HcclComm comm,
                    aclrtStream stream) {
  return queue("HcclRecv", comm, stream, [=](Comm& with, int timeout_s) {
    return with.mail.run({{false, peer, view(into), count * size_of(type)}}, kMessage, timeout_s);
  });
}

HcclResult HcclBatchSendRecv(HcclSendRecvItem* items, uint32_t count, HcclComm comm,
                             aclrtStream stream) {
  std::vector<Transfer> transfers;
  for (uint32_t at = 0; at < count; ++at) {
    const HcclSendRecvItem& item = items[at];
    transfers.push_back({item.sendRecvType == HCCL_SEND, item.remoteRank, view(item.buf),
                         item.count * size_of(item.dataType)});
  }
  return queue("HcclBatchSendRecv", comm, stream, [=](Comm& with, int timeout_s) {
    return with.mail.run(transfers, kMessage, timeout_s);
  });
}

}  // extern "C"
