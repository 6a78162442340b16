// Reference kernels: operators of the CPU, run on the simulated device's memory as work of its
// streams.
//
// A call finds the shapes of its results on meta tensors, allocates them by torch_npu's allocator
// and goes through torch_npu's queue of tasks onto the current stream; the stream's thread computes.
// What depends on values (nonzero, unique and their like) waits for the stream first, as it must on
// the device. A failure on the stream comes out at its next synchronisation.

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/_to_copy_native.h>
#include <ATen/ops/clone_native.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/library.h>

#include "torch_npu/csrc/core/npu/NPUStream.h"
#include "torch_npu/csrc/framework/OpCommand.h"

#include <memory>
#include <set>
#include <unordered_map>

#include "call.h"
#include "sim.h"

namespace sim {
namespace {

at::Tensor like(const at::Tensor& tensor, c10::Device device) {
  return at::empty_strided(tensor.sizes(), tensor.strides(), tensor.options().device(device));
}

using Tensors = std::vector<at::Tensor>;

// The results of a call as the caller gets them, and by result what the kernel's is copied into.
struct Results {
  std::vector<IValue> given;
  std::vector<Tensors> fresh;

  static Results of(const Call& call, const Stack& inferred) {
    Results made;
    made.fresh.resize(inferred.size());
    for (size_t index = 0; index < inferred.size(); ++index) {
      if (const auto target = call.written(index)) {
        const at::Tensor& wanted = inferred[index].toTensor();
        if (target->sizes() != wanted.sizes()) target->resize_(wanted.sizes());
        made.given.push_back(*target);
      } else {
        made.given.push_back(changed(inferred[index], [&](const at::Tensor& tensor) {
          if (!tensor.defined()) return tensor;
          auto fresh = like(tensor, call.device);
          made.fresh[index].push_back(fresh);
          return fresh;
        }));
      }
    }
    return made;
  }
};

void run_on_host(const c10::OperatorHandle& op, Stack& stack) {
  c10::impl::ExcludeDispatchKeyGuard below(c10::autograd_dispatch_keyset);
  op.callBoxed(stack);
}

bool infer(const Call& call, Stack& stack) {
  stack = call.on(c10::Device(at::kMeta), as_meta);
  try {
    run_on_host(call.op, stack);
  } catch (const std::exception&) {
    return false;  // its shapes depend on values, or it is wrong: the CPU's kernel says which
  }
  return true;
}

const char* name_of(const c10::OperatorHandle& op) {
  static std::mutex lock;
  static auto* names = new std::set<std::string>();
  std::lock_guard<std::mutex> hold(lock);
  return names->insert(c10::toString(op.operator_name())).first->c_str();
}

void deliver(const Stack& computed, const std::vector<Tensors>& into) {
  for (size_t index = 0; index < into.size(); ++index) {
    if (into[index].empty()) continue;
    auto target = into[index].begin();
    visit(computed[index], [&](const at::Tensor& tensor) {
      TORCH_CHECK(target->sizes() == tensor.sizes(), "the result has another shape");
      (target++)->copy_(tensor);
    });
  }
}

aclError compute(const c10::OperatorHandle& op, Stack stack, const std::vector<Tensors>& into) {
  try {
    run_on_host(op, stack);
    deliver(stack, into);
    return ACL_SUCCESS;
  } catch (const c10::Error& error) {
    return fail(ACL_ERROR_RT_AICORE_EXCEPTION, error.what_without_backtrace());
  } catch (const std::exception& error) {
    return fail(ACL_ERROR_RT_AICORE_EXCEPTION, error.what());
  }
}

void launch(const Call& call, Stack stack, std::vector<Tensors> into) {
  const char* name = name_of(call.op);
  auto stream = c10_npu::getCurrentNPUStream(call.device.index()).stream(false);
  // Moved on, so that the stream's thread and not the queue's drops the tensors.
  auto work = std::make_shared<Work>(
      [op = call.op, stack = std::move(stack), into = std::move(into)] {
        return compute(op, stack, into);
      });
  auto queued = [stream, name, work]() -> int {
    trace("kernel %s stream=%p", name, stream);
    return submit(stream, name, std::move(*work));
  };
  at_npu::native::OpCommand::RunOpApiV2(name, queued);
}

void wait_for_values(const Call& call) {
  auto stream = c10_npu::getCurrentNPUStream(call.device.index());
  trace("kernel waits %s stream=%p", name_of(call.op), stream.stream());
  stream.synchronize();
}

std::unordered_map<std::string, std::set<std::string>>& host_arguments() {
  static auto* kept = new std::unordered_map<std::string, std::set<std::string>>();
  return *kept;
}

// Operators read each argument where it belongs: on the one device, or on the host. Of aten's that
// are numbers, and lists of indices; of the vendor's what take() was told.
void check_places(const Call& call) {
  const auto found = host_arguments().find(std::string(call.op.operator_name().getNamespace().value()));
  const bool vendor = found != host_arguments().end();
  for (size_t index = 0; index < call.arguments.size(); ++index) {
    const IValue& value = call.arguments[index];
    const std::string& name = call.op.schema().arguments()[index].name();
    const bool on_host = vendor && found->second.count(name) != 0;
    visit(value, [&](const at::Tensor& tensor) {
      if (is_npu(tensor)) {
        TORCH_CHECK(!on_host, name, " is not on the host");
        TORCH_CHECK(tensor.device() == call.device,
                    "Expected all tensors to be on the same device, but found at least two devices, ",
                    tensor.device(), " and ", call.device, "!");
      } else {
        const bool fits = vendor ? on_host : !tensor.dim() || (value.isList() && !value.isTensorList());
        TORCH_CHECK(fits, "Expected NPU tensor, but ", name, " is on ", tensor.device());
      }
    });
  }
}

void run(const c10::OperatorHandle& op, c10::DispatchKeySet, Stack* stack) {
  const Call call(op, *stack);
  check_places(call);
  c10::OptionalDeviceGuard guard;
  if (call.device.has_index()) guard.reset_device(call.device);
  HostViews views;
  auto on_host = [&views](const at::Tensor& tensor) { return views.of(tensor); };
  auto arguments = [&] { return call.on(c10::Device(at::kCPU), on_host); };
  auto viewed = [&](const Results& results) {
    std::vector<Tensors> into(results.fresh.size());
    for (size_t index = 0; index < into.size(); ++index) {
      for (const at::Tensor& tensor : results.fresh[index]) into[index].push_back(views.of(tensor));
    }
    return into;
  };
  Stack inferred;
  Results results;
  // Outputs of the vendor's operators have their shapes already; those of aten may be resized.
  if (op.operator_name().getNamespace() != "aten" && call.makes_nothing_new()) {
    for (size_t index = 0; index < op.schema().returns().size(); ++index) {
      results.given.emplace_back(*call.written(index));
    }
    launch(call, arguments(), {});
  } else if (infer(call, inferred)) {
    results = Results::of(call, inferred);
    launch(call, arguments(), viewed(results));
  } else {
    wait_for_values(call);
    Stack done = arguments();
    run_on_host(op, done);
    results = Results::of(call, done);
    deliver(done, viewed(results));
  }
  torch::jit::drop(*stack, call.arguments.size());
  for (IValue& value : results.given) stack->push_back(std::move(value));
}

c10::SafeKernelFunction& vendors_copy() {
  static auto* kept = new c10::SafeKernelFunction(
      c10::Dispatcher::singleton()
          .findSchemaOrThrow("aten::copy_", "")
          .getComputedKernelForDispatchKey(c10::DispatchKey::PrivateUse1));
  return *kept;
}

// copy_ is torch_npu's as far as it needs no kernel: between devices and the host, and of what lies
// in one piece. What has to be gathered, scattered or cast is that by a kernel on the device.
void copy(const c10::OperatorHandle& op, c10::DispatchKeySet keys, Stack* stack) {
  const at::Tensor to = (*stack)[stack->size() - 3].toTensor();
  const at::Tensor from = (*stack)[stack->size() - 2].toTensor();
  const bool same_type = to.dtype() == from.dtype() && to.sizes() == from.sizes();
  if (is_npu(to) && is_npu(from) && to.device() == from.device()) {
    if (same_type && to.is_contiguous() && from.is_contiguous()) {
      vendors_copy().callBoxed(op, keys, stack);
    } else {
      run(op, keys, stack);
    }
  } else if (is_npu(to) && !(same_type && to.is_contiguous())) {
    at::Tensor whole = at::empty(from.sizes(), to.options());
    to.copy_(whole.copy_(from.to(to.dtype()), (*stack)[stack->size() - 1].toBool()));
    torch::jit::drop(*stack, 3);
    stack->emplace_back(to);
  } else {
    if (is_npu(from)) (*stack)[stack->size() - 2] = from.to(to.dtype()).contiguous();
    vendors_copy().callBoxed(op, keys, stack);
  }
}

std::vector<std::unique_ptr<torch::Library>>& libraries() {
  static auto* kept = new std::vector<std::unique_ptr<torch::Library>>();
  return *kept;
}

std::unique_ptr<torch::Library> implementations(
    const std::string& space, c10::DispatchKey key = c10::DispatchKey::PrivateUse1) {
  return std::make_unique<torch::Library>(torch::Library::IMPL, space, key, __FILE__, __LINE__);
}

// Put the kernels before torch_npu's, for operators of a namespace by name and overload.
void take(const std::string& space, const std::vector<std::string>& names,
          const std::vector<std::string>& host) {
  if (space != "aten") host_arguments()[space] = {host.begin(), host.end()};
  auto library = implementations(space);
  for (const std::string& name : names) {
    library->impl(name.c_str(), torch::CppFunction::makeFromBoxedFunction<&run>());
  }
  libraries().push_back(std::move(library));
}

// Copies and what torch makes of them: torch_npu has its own of these, which need its kernels.
void take_copies() {
  vendors_copy();
  auto library = implementations("aten");
  library->impl("copy_", torch::CppFunction::makeFromBoxedFunction<&copy>());
  library->impl("_to_copy", &at::native::_to_copy);
  library->impl("clone", [](const at::Tensor& tensor, std::optional<at::MemoryFormat> format) {
    if (format.value_or(at::MemoryFormat::Preserve) == at::MemoryFormat::Preserve) {
      return at::native::clone(tensor, format);
    }
    return at::empty(tensor.sizes(), tensor.options()).copy_(tensor);
  });
  library->impl("contiguous", [](const at::Tensor& tensor, at::MemoryFormat format) {
    return tensor.is_contiguous(format) ? tensor : tensor.clone(format);
  });
  libraries().push_back(std::move(library));
  // torch_npu decides before autograd that this is one call of a fused operator.
  auto early = implementations("aten", c10::DispatchKey::AutogradPrivateUse1);
  early->impl("scaled_dot_product_attention", torch::CppFunction::makeFromBoxedFunction<&run>());
  libraries().push_back(std::move(early));
}

}  // namespace
}  // namespace sim

TORCH_LIBRARY(ascend_sim, library) {
  library.def("take(str space, str[] names, str[] host) -> ()",
              [](std::string space, std::vector<std::string> names,
                 std::vector<std::string> host) { sim::take(space, names, host); });
  library.def("take_copies() -> ()", &sim::take_copies);
}
