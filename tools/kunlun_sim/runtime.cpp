// A custom device for Paddle in host memory: type kunlun_sim, two devices.
//
// Asynchronous copies are work of streams and run on their threads. Copies without a stream are
// done by the caller at once, as the ABI says, and order themselves after nothing: Paddle waits for
// its current stream before it asks for one.

#include <array>
#include <chrono>
#include <cstring>
#include <iterator>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "kernels.h"
#include "memory.h"
#include "paddle/phi/backends/device_ext.h"
#include "streams.h"
#include "trace.h"

namespace kunlun_sim {
namespace {

constexpr size_t kDevices = 2;

Memory& memory(const C_Device device) {
  static auto* held = new std::array<Memory, kDevices>();
  return held->at(device->id);
}

int& current_device() {
  thread_local int index = 0;
  return index;
}

Stream& of(C_Stream stream) { return *reinterpret_cast<Stream*>(stream); }
Event& of(C_Event event) { return *reinterpret_cast<Event*>(event); }

bool exists(const C_Device device) { return device->id >= 0 && size_t(device->id) < kDevices; }

C_Status initialize() { return C_SUCCESS; }
C_Status finalize() { return C_SUCCESS; }
C_Status init_device(const C_Device device) { return exists(device) ? C_SUCCESS : C_ERROR; }
C_Status deinit_device(const C_Device device) {
  streams().synchronize(device->id);
  return C_SUCCESS;
}
C_Status set_device(const C_Device device) {
  if (!exists(device)) return C_ERROR;
  current_device() = device->id;
  return C_SUCCESS;
}
C_Status get_device(const C_Device device) {
  device->id = current_device();
  return C_SUCCESS;
}
C_Status get_device_count(size_t* count) {
  *count = kDevices;
  return C_SUCCESS;
}
C_Status get_device_list(size_t* devices) {
  for (size_t index = 0; index < kDevices; ++index) devices[index] = index;
  return C_SUCCESS;
}

C_Status create_stream(const C_Device device, C_Stream* stream) {
  Stream* made = streams().make(device->id);
  trace().write("create_stream", "device", device->id, "stream", made->id());
  *stream = reinterpret_cast<C_Stream>(made);
  return C_SUCCESS;
}
C_Status destroy_stream(const C_Device, C_Stream stream) {
  return streams().destroy(reinterpret_cast<Stream*>(stream)) ? C_SUCCESS : C_ERROR;
}
C_Status synchronize_stream(const C_Device, C_Stream stream) {
  trace().write("synchronize_stream", "stream", of(stream).id());
  of(stream).synchronize();
  return C_SUCCESS;
}
C_Status synchronize_device(const C_Device device) {
  trace().write("synchronize_device", "device", device->id);
  streams().synchronize(device->id);
  return C_SUCCESS;
}
C_Status add_callback(const C_Device device, C_Stream stream, C_Callback callback, void* data) {
  of(stream).submit("callback", [device, stream, callback, data] {
    C_Status ignored = C_SUCCESS;
    callback(device, stream, data, &ignored);
  });
  return C_SUCCESS;
}

C_Status create_event(const C_Device, C_Event* event) {
  *event = reinterpret_cast<C_Event>(new Event());
  return C_SUCCESS;
}
C_Status destroy_event(const C_Device, C_Event event) {
  delete &of(event);
  return C_SUCCESS;
}
C_Status record_event(const C_Device, C_Stream stream, C_Event event) {
  of(event).record(of(stream));
  return C_SUCCESS;
}
C_Status query_event(const C_Device, C_Event event) {
  auto marker = of(event).marker();
  return !marker || marker->done() ? C_SUCCESS : C_FAILED;
}
C_Status synchronize_event(const C_Device, C_Event event) {
  trace().write("synchronize_event", "event", &of(event));
  if (auto marker = of(event).marker()) marker->wait();
  return C_SUCCESS;
}
C_Status stream_wait_event(const C_Device, C_Stream stream, C_Event event) {
  if (auto marker = of(event).marker()) {
    of(stream).submit("wait_event", [marker] { marker->wait(); }, "event", &of(event));
  }
  return C_SUCCESS;
}

// Success with no memory is how Paddle is told that the device is full.
C_Status allocate(const C_Device device, void** place, size_t size) {
  *place = memory(device).take(size);
  trace().write("allocate", "device", device->id, "bytes", size, *place ? "" : "full");
  return C_SUCCESS;
}
C_Status deallocate(const C_Device device, void* place, size_t size) {
  trace().write("deallocate", "device", device->id, "bytes", size);
  streams().synchronize(device->id);  // as drivers do: work under way may still use it
  return memory(device).give(place) ? C_SUCCESS : C_ERROR;
}
C_Status set_memory(const C_Device device, void* place, unsigned char value, size_t size) {
  if (!memory(device).owns(place, size)) return C_ERROR;
  std::memset(untagged(place), value, size);
  return C_SUCCESS;
}
C_Status memory_stats(const C_Device device, size_t* total, size_t* free) {
  *total = memory(device).total();
  *free = memory(device).free_bytes();
  return C_SUCCESS;
}
C_Status min_chunk_size(const C_Device, size_t* size) {
  *size = 256;
  return C_SUCCESS;
}

enum Direction { kH2D, kD2H, kD2D };
constexpr const char* kNames[] = {"copy_h2d", "copy_d2h", "copy_d2d"};

bool valid(Direction way, const C_Device device, void* to, const void* from, size_t size) {
  return (way == kD2H || memory(device).owns(to, size)) &&
         (way == kH2D || memory(device).owns(from, size));
}

template <Direction way>
C_Status copy(const C_Device device, void* to, const void* from, size_t size) {
  trace().write("call", kNames[way], "device", device->id, "bytes", size);
  if (!valid(way, device, to, from, size)) return C_ERROR;
  std::memmove(untagged(to), untagged(from), size);
  return C_SUCCESS;
}
// The host's memory is pageable, as nothing pins it: what is read is taken at once, and what is
// written is there when the call returns, in the stream's order.
template <Direction way>
C_Status copy_async(const C_Device device, C_Stream stream, void* to, const void* from,
                    size_t size) {
  if (!valid(way, device, to, from, size)) return C_ERROR;
  std::vector<char> staged;
  const auto* bytes = static_cast<const char*>(from);
  if (way == kH2D) staged.assign(bytes, bytes + size);
  auto work = [=, staged = std::move(staged)] {
    std::memmove(untagged(to), way == kH2D ? staged.data() : untagged(from), size);
  };
  auto done = of(stream).submit(kNames[way], std::move(work), "bytes", size);
  if (way == kD2H) done->wait();
  return C_SUCCESS;
}
C_Status copy_peer(const C_Device target, const C_Device source, void* to, const void* from,
                   size_t size) {
  trace().write("call", "copy_p2p", "from", source->id, "to", target->id, "bytes", size);
  if (!memory(target).owns(to, size) || !memory(source).owns(from, size)) return C_ERROR;
  std::memmove(untagged(to), untagged(from), size);
  return C_SUCCESS;
}
C_Status copy_peer_async(const C_Device target, const C_Device source, C_Stream stream, void* to,
                         const void* from, size_t size) {
  if (!memory(target).owns(to, size) || !memory(source).owns(from, size)) return C_ERROR;
  auto work = [=] { std::memmove(untagged(to), untagged(from), size); };
  of(stream).submit("copy_p2p", work, "bytes", size);
  return C_SUCCESS;
}

void fill(C_DeviceInterface& table) {
  table.initialize = initialize;
  table.finalize = finalize;
  table.init_device = init_device;
  table.deinit_device = deinit_device;
  table.set_device = set_device;
  table.get_device = get_device;
  table.get_device_count = get_device_count;
  table.get_device_list = get_device_list;
  table.create_stream = create_stream;
  table.destroy_stream = destroy_stream;
  table.synchronize_stream = synchronize_stream;
  table.synchronize_device = synchronize_device;
  table.stream_add_callback = add_callback;
  table.create_event = create_event;
  table.destroy_event = destroy_event;
  table.record_event = record_event;
  table.query_event = query_event;
  table.synchronize_event = synchronize_event;
  table.stream_wait_event = stream_wait_event;
  table.device_memory_allocate = allocate;
  table.device_memory_deallocate = deallocate;
  table.device_memory_set = set_memory;
  table.device_memory_stats = memory_stats;
  table.device_min_chunk_size = min_chunk_size;
  table.memory_copy_h2d = copy<kH2D>;
  table.memory_copy_d2h = copy<kD2H>;
  table.memory_copy_d2d = copy<kD2D>;
  table.memory_copy_p2p = copy_peer;
  table.async_memory_copy_h2d = copy_async<kH2D>;
  table.async_memory_copy_d2h = copy_async<kD2H>;
  table.async_memory_copy_d2d = copy_async<kD2D>;
  table.async_memory_copy_p2p = copy_peer_async;
}

}  // namespace
}  // namespace kunlun_sim

extern "C" {

void InitPlugin(CustomRuntimeParams* params) {
  if (params->size != sizeof(CustomRuntimeParams)) return;
  if (params->interface->size != sizeof(C_DeviceInterface)) return;
  PADDLE_CUSTOM_RUNTIME_CHECK_VERSION(params);
  static std::string type = kunlun_sim::kDeviceType;
  static char sub_type[] = "none";
  params->device_type = type.data();
  params->sub_device_type = sub_type;
  kunlun_sim::fill(*params->interface);
  kunlun_sim::register_kernels();
}

// For tests: starts the trace afresh, or stops it.
void kunlun_sim_trace(int on) { kunlun_sim::trace().enable(on); }

// For tests: the trace's length; copies as much of it as fits, with a zero at its end.
size_t kunlun_sim_trace_read(char* buffer, size_t size) {
  const std::string lines = kunlun_sim::trace().read();
  if (size) buffer[lines.copy(buffer, size - 1)] = '\0';
  return lines.size();
}

// For tests: keeps a stream busy.
void kunlun_sim_sleep(void* stream, int milliseconds) {
  static_cast<kunlun_sim::Stream*>(stream)->submit("sleep", [milliseconds] {
    std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
  });
}

// For tests: the number by which the trace calls a stream.
int kunlun_sim_stream_id(void* stream) { return static_cast<kunlun_sim::Stream*>(stream)->id(); }
}
