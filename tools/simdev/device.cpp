// A torch device in host memory: PrivateUse1 with allocator, guard, streams, events and copies.
//
// Copies are work of streams and run on their threads. Kernels are the CPU's: arguments are copied
// to the host in the order of the current stream, and results back.

#include <ATen/Context.h>
#include <ATen/EmptyTensor.h>
#include <ATen/Functions.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <atomic>

#include "memory.h"

namespace simdev {
namespace {

constexpr auto kType = c10::DeviceType::PrivateUse1;

DeviceAllocator* allocator() {
  static auto* made = new DeviceAllocator();
  return made;
}

int checked(c10::DeviceIndex index) {
  if (index < 0) return current_device();
  TORCH_CHECK(index < kDevices, "simdev:", int(index), " does not exist, there are ", kDevices);
  return index;
}

Queue& queue_of(const c10::Stream& stream) {
  return device(checked(stream.device_index())).queues.at(stream.id());
}

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return kType; }
  c10::Device getDevice() const override { return {kType, c10::DeviceIndex(current_device())}; }
  c10::Device exchangeDevice(c10::Device wanted) const override {
    auto before = getDevice();
    setDevice(wanted);
    return before;
  }
  void setDevice(c10::Device wanted) const override { current_device() = checked(wanted.index()); }
  void uncheckedSetDevice(c10::Device wanted) const noexcept override {
    current_device() = wanted.index();
  }
  c10::DeviceIndex deviceCount() const noexcept override { return kDevices; }

  c10::Stream make(int64_t id, c10::Device where) const {
    return c10::Stream(c10::Stream::UNSAFE, {kType, c10::DeviceIndex(checked(where.index()))}, id);
  }
  c10::Stream getStream(c10::Device where) const override {
    return make(current_stream(checked(where.index())), where);
  }
  c10::Stream getDefaultStream(c10::Device where) const override { return make(0, where); }
  c10::Stream getNewStream(c10::Device where, int /*priority*/) const override {
    static std::array<std::atomic<unsigned>, kDevices> made{};
    return make(1 + made.at(checked(where.index()))++ % (kStreams - 1), where);
  }
  c10::Stream getStreamFromGlobalPool(c10::Device where, bool /*high*/) const override {
    return getNewStream(where, 0);
  }
  c10::Stream exchangeStream(c10::Stream wanted) const override {
    auto before = getStream(wanted.device());
    current_stream(checked(wanted.device_index())) = wanted.id();
    return before;
  }
  bool queryStream(const c10::Stream& stream) const override { return queue_of(stream).idle(); }
  void synchronizeStream(const c10::Stream& stream) const override {
    queue_of(stream).synchronize();
  }
  void synchronizeDevice(const c10::DeviceIndex index) const override {
    device(checked(index)).synchronize();
  }

  static MarkerPtr& marker(void* event) { return *static_cast<MarkerPtr*>(event); }
  void record(void** event, const c10::Stream& stream, const c10::DeviceIndex /*index*/,
              const c10::EventFlag /*flag*/) const override {
    if (!*event) *event = new MarkerPtr();
    marker(*event) = queue_of(stream).submit();
  }
  void block(void* event, const c10::Stream& stream) const override {
    if (event) queue_of(stream).wait_for(marker(event));
  }
  bool queryEvent(void* event) const override { return !event || marker(event)->done(); }
  void synchronizeEvent(void* event) const override {
    if (event) marker(event)->wait();
  }
  double elapsedTime(void* start, void* end, const c10::DeviceIndex /*index*/) const override {
    TORCH_CHECK(start && end, "both events must be recorded");
    std::chrono::duration<double, std::milli> passed = marker(end)->when() - marker(start)->when();
    return passed.count();
  }
  void destroyEvent(void* event, const c10::DeviceIndex /*index*/) const noexcept override {
    delete static_cast<MarkerPtr*>(event);
  }
  void recordDataPtrOnStream(const c10::DataPtr& data, const c10::Stream& stream) const override {
    auto* block = static_cast<Block*>(data.get_context());
    if (block) pool(block->device).record(block, stream.id());
  }
};

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return kDevices; }
  c10::DeviceIndex getCurrentDevice() const override { return current_device(); }
  void setCurrentDevice(c10::DeviceIndex index) const override {
    current_device() = checked(index);
  }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex index) const override {
    return std::exchange(current_device(), checked(index));
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex index) const override {
    return exchangeDevice(index);
  }
  bool isPinnedPtr(const void* address) const override { return PinnedAllocator::owns(address); }
  c10::Allocator* getPinnedMemoryAllocator() const override {
    static auto* made = new PinnedAllocator();
    return made;
  }
};

at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride,
                         std::optional<at::ScalarType> dtype, std::optional<at::Layout>,
                         std::optional<at::Device> where, std::optional<bool>) {
  c10::DeviceGuard guard(where.value_or(at::Device(kType)));
  return at::detail::empty_strided_generic(
      size, stride, allocator(), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
      dtype.value_or(at::kFloat));
}

at::Tensor empty(at::IntArrayRef size, std::optional<at::ScalarType> dtype,
                 std::optional<at::Layout>, std::optional<at::Device> where, std::optional<bool>,
                 std::optional<at::MemoryFormat> format) {
  c10::DeviceGuard guard(where.value_or(at::Device(kType)));
  return at::detail::empty_generic(
      size, allocator(), c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
      dtype.value_or(at::kFloat), format);
}

// The same memory, as the thread of a stream may see it. The tensor's owner keeps it alive.
at::Tensor on_host(const at::Tensor& tensor) {
  return at::from_blob(untagged(tensor.data_ptr()), tensor.sizes(), tensor.strides(),
                       at::TensorOptions().dtype(tensor.dtype()));
}

at::Tensor copy_from(const at::Tensor& source, const at::Tensor& target, bool non_blocking) {
  TORCH_CHECK(!source.is_complex() && !target.is_complex(), "simdev has no complex numbers");
  if (!target.numel()) return target;
  const bool from_device = source.device().type() == kType;
  const bool to_device = target.device().type() == kType;
  Queue& queue = current_queue((from_device ? source : target).device().index());
  Queue& other = current_queue((to_device ? target : source).device().index());
  if (&other != &queue) queue.wait_for(other.last());
  const auto pinned = [](const at::Tensor& one) { return PinnedAllocator::owns(one.data_ptr()); };
  const bool both = from_device && to_device;
  const bool returns_at_once = both || (non_blocking && pinned(from_device ? target : source));
  // Host memory is kept alive by the copy, device memory by its order of reuse.
  at::Tensor kept_source = from_device ? at::Tensor() : source;
  at::Tensor kept_target = to_device ? at::Tensor() : target;
  auto work = [read = on_host(source), write = on_host(target), kept_source, kept_target] {
    at::NoGradGuard no_grad;
    write.copy_(read);
  };
  auto marker = queue.submit(std::move(work));
  if (&other != &queue) other.wait_for(marker);
  if (!returns_at_once) marker->wait();
  return target;
}

const at::Tensor& grow(const at::Tensor& self, at::IntArrayRef size,
                         std::optional<at::MemoryFormat>) {
  c10::DeviceGuard guard(self.device());
  auto* tensor = self.unsafeGetTensorImpl();
  const auto& storage = tensor->unsafe_storage();
  const size_t needed = at::detail::computeStorageNbytesContiguous(
      size, self.dtype().itemsize(), self.storage_offset());
  if (needed > storage.nbytes()) {
    auto grown = allocator()->allocate(needed);
    if (storage.nbytes()) allocator()->copy_data(grown.get(), storage.data(), storage.nbytes());
    storage.set_data_ptr_noswap(std::move(grown));
    storage.set_nbytes(needed);
  }
  if (self.sizes() != size) tensor->set_sizes_contiguous(size);
  return self;
}

at::Tensor copy_from_and_resize(const at::Tensor& source, const at::Tensor& target) {
  if (target.sizes() != source.sizes()) grow(target, source.sizes(), std::nullopt);
  return copy_from(source, target, false);
}

void record_stream(at::Tensor& self, at::Stream stream) {
  Guard().recordDataPtrOnStream(self.storage().data_ptr(), stream);
}

std::vector<at::Tensor> tensors_of(const c10::IValue& value) {
  if (value.isTensor()) return {value.toTensor()};
  std::vector<at::Tensor> found;
  if (value.isTensorList()) {
    for (const at::Tensor& one : value.toTensorList()) found.push_back(one);
  } else if (value.isOptionalTensorList()) {
    for (const std::optional<at::Tensor>& one : value.toOptionalTensorList()) {
      if (one) found.push_back(*one);
    }
  }
  return found;
}

// As devices do: numbers and indices may come from the host, arrays may not.
void check_devices(const c10::OperatorHandle& op, const torch::jit::Stack& stack) {
  const std::string& name = op.schema().name();
  const bool indexes = name.find("index") != std::string::npos;
  std::set<int> seen;
  for (auto place = stack.size() - op.schema().arguments().size(); place < stack.size(); ++place) {
    for (const at::Tensor& tensor : tensors_of(stack[place])) {
      if (!tensor.defined()) continue;
      const bool on_host = tensor.device().is_cpu();
      if (!on_host || (tensor.dim() && !indexes)) seen.insert(tensor.device().index());
    }
  }
  TORCH_CHECK(seen.size() < 2, name, ": Expected all tensors to be on the same device");
}

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  check_devices(op, *stack);
  at::native::cpu_fallback(op, stack);
}

}  // namespace

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard);

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", empty);
  m.impl("empty_strided", empty_strided);
  m.impl("_copy_from", copy_from);
  m.impl("_copy_from_and_resize", copy_from_and_resize);
  m.impl("resize_", grow);
  m.impl("record_stream", record_stream);
  // torch would compose it of operations that round to half types in between.
  m.impl("native_layer_norm", torch::CppFunction::makeFromBoxedFunction<&fallback>());
  m.impl("view", at::native::view);
  m.impl("as_strided", at::native::as_strided_tensorimpl);
  m.impl("_reshape_alias", at::native::_reshape_alias);
  m.impl("unfold", at::native::unfold);
  m.impl("set_.source_Storage_storage_offset", at::native::set_storage_cpu_);
}

TORCH_LIBRARY(simdev, m) {
  m.def("register() -> ()", [] {
    static auto* hooks = new Hooks();
    at::RegisterPrivateUse1HooksInterface(hooks);
  });
  m.def("device_count() -> int", [] { return int64_t(kDevices); });
  m.def("memory(int device) -> int[]", [](int64_t index) { return pool(checked(index)).figures(); });
  m.def("empty_cache() -> ()", [] {
    for (int index = 0; index < kDevices; ++index) pool(index).release_idle();
  });
  m.def("host_register(int address, int nbytes) -> ()", [](int64_t address, int64_t nbytes) {
    PinnedAllocator::add(address, nbytes);
  });
  m.def("host_unregister(int address) -> ()", [](int64_t address) {
    PinnedAllocator::remove(address);
  });
  // Work of the current stream that takes its time.
  m.def("sleep(int milliseconds) -> ()", [](int64_t milliseconds) {
    current_queue(current_device()).submit([milliseconds] {
      std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
    });
  });
}

}  // namespace simdev
