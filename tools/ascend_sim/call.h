// A call of an operator, and its tensors elsewhere: on the host, or as shapes alone.
#pragma once

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <functional>
#include <unordered_map>

#include "sim.h"

namespace sim {
namespace {

using c10::IValue;
using torch::jit::Stack;
constexpr auto kNPU = c10::DeviceType::PrivateUse1;

// Rewrites the tensors of a stack; lists of them too, optional or not.
template <typename Change>
IValue changed(const IValue& value, const Change& change) {
  if (value.isTensor()) return change(value.toTensor());
  if (value.isTensorList()) {
    c10::List<at::Tensor> list;
    for (const at::Tensor& item : value.toTensorVector()) list.push_back(change(item));
    return list;
  }
  if (value.isList()) {
    c10::List<IValue> list(value.toList().elementType());
    for (const IValue& item : value.toListRef()) list.push_back(changed(item, change));
    return IValue(list);
  }
  return value;
}

template <typename Look>
void visit(const IValue& value, const Look& look) {
  changed(value, [&look](const at::Tensor& tensor) {
    if (tensor.defined()) look(tensor);
    return tensor;
  });
}

bool is_npu(const at::Tensor& tensor) { return tensor.defined() && tensor.device().type() == kNPU; }

// CPU tensors over the memory of NPU tensors; what shares storage goes on sharing it.
class HostViews {
 public:
  at::Tensor of(const at::Tensor& tensor) {
    if (!tensor.defined()) return tensor;
    if (!is_npu(tensor)) return tensor.dim() ? tensor.clone() : tensor.detach().clone();
    const auto& storage = tensor.storage();
    auto [found, fresh] = storages_.try_emplace(storage.unsafeGetStorageImpl());
    if (fresh) {
      void* memory = host_view(storage.data());
      found->second = c10::Storage(c10::Storage::use_byte_size_t(), storage.nbytes(),
                                   at::DataPtr(memory, c10::Device(at::kCPU)), nullptr, false);
    }
    auto view = at::detail::make_tensor<c10::TensorImpl>(
        c10::Storage(found->second), c10::DispatchKeySet(c10::DispatchKey::CPU), tensor.dtype());
    view.unsafeGetTensorImpl()->set_sizes_and_strides(tensor.sizes(), tensor.strides(),
                                                      tensor.storage_offset());
    return view;
  }

 private:
  std::unordered_map<c10::StorageImpl*, c10::Storage> storages_;
};

at::Tensor as_meta(const at::Tensor& tensor) {
  if (!tensor.defined() || (tensor.is_cpu() && !tensor.dim())) return tensor;
  return at::empty_strided(tensor.sizes(), tensor.strides(),
                           tensor.options().device(at::kMeta).pinned_memory(false));
}

// Other devices than tensors': arguments named device, and generators, which the CPU has its own of.
IValue elsewhere(const IValue& value, c10::Device device) {
  if (value.isDevice() && value.toDevice().type() == kNPU) return device;
  if (value.isGenerator()) return IValue();
  return value;
}

struct Call {
  explicit Call(const c10::OperatorHandle& op, const Stack& all)
      : op(op), arguments(all.end() - op.schema().arguments().size(), all.end()) {
    for (const IValue& value : arguments) {
      visit(value, [this](const at::Tensor& tensor) {
        if (is_npu(tensor)) device = tensor.device();
      });
      if (value.isDevice() && value.toDevice().type() == kNPU) device = value.toDevice();
    }
  }

  const c10::OperatorHandle& op;
  std::vector<IValue> arguments;
  c10::Device device{kNPU, -1};

  Stack on(c10::Device where, const std::function<at::Tensor(const at::Tensor&)>& change) const {
    Stack stack;
    for (const IValue& value : arguments) {
      stack.push_back(changed(elsewhere(value, where), change));
    }
    return stack;
  }

  // The argument that a result is, where the schema says that it is one.
  std::optional<at::Tensor> written(size_t result) const {
    const auto* alias = op.schema().returns()[result].alias_info();
    for (size_t index = 0; index < arguments.size(); ++index) {
      const c10::Argument& argument = op.schema().arguments()[index];
      const auto* other = argument.alias_info();
      const bool same = alias && alias->isWrite() && other && other->beforeSets() == alias->beforeSets();
      if (same && arguments[index].isTensor()) return arguments[index].toTensor();
      // The vendor's schemas with a list of outputs do not say that these are the results.
      if (argument.name() == "out" && arguments[index].isTensorList()) {
        return arguments[index].toTensorList().get(result);
      }
    }
    return std::nullopt;
  }

  bool makes_nothing_new() const {
    for (size_t index = 0; index < op.schema().returns().size(); ++index) {
      if (!written(index)) return false;
    }
    return true;
  }
};

}  // namespace
}  // namespace sim
