// Paddle's tensors through its C interface, as views of device memory.
#pragma once

#include <functional>
#include <type_traits>
#include <utility>

#include "memory.h"
#include "paddle/phi/capi/include/c_kernel_context.h"
#include "streams.h"
#include "views.h"

namespace kunlun_sim {

using Context = const PD_DeviceContext*;
using In = const PD_Tensor*;
using Out = PD_Tensor*;

// The status comes last in every function of the interface.
template <typename Result, typename... Wanted, typename... Given>
Result ask(Result (*function)(Wanted...), Given... given) {
  const auto check = [](PD_Status status) {
    if (status != C_SUCCESS) refuse("Paddle refused a call");
  };
  PD_Status status = C_SUCCESS;
  if constexpr (std::is_void_v<Result>) {
    function(given..., &status);
    check(status);
  } else {
    Result result = function(given..., &status);
    check(status);
    return result;
  }
}

inline size_t width_of(PD_DataType type) {
  switch (type) {
    case BOOL: case UINT8: case INT8: return 1;
    case UINT16: case INT16: case FLOAT16: case BFLOAT16: return 2;
    case UINT32: case INT32: case FLOAT32: return 4;
    case UINT64: case INT64: case FLOAT64: case COMPLEX64: return 8;
    case COMPLEX128: return 16;
    default: refuse("no such data type");
  }
}

inline PD_DataType type_of(In tensor) { return ask(PD_TensorGetPDDataType, tensor); }

inline Sizes sizes_of(In tensor) {
  Sizes sizes(size_t(ask(PD_TensorGetNumDims, tensor)));
  for (size_t axis = 0; axis < sizes.size(); ++axis) {
    sizes[axis] = ask(PD_TensorGetDim, tensor, axis);
  }
  return sizes;
}

// Without data where there are no elements. Paddle gives strided copies whatever tensors there are.
inline View view_of(In tensor) {
  View view{nullptr, width_of(type_of(tensor)), sizes_of(tensor), {}};
  view.strides = dense_strides(view.sizes);
  if (!count(view.sizes)) return view;
  void* address = ask(PD_TensorGetDataPointer, tensor);
  if (untagged(address) == address) {
    refuse("a kernel of the device was given host memory");
  }
  view.data = static_cast<char*>(untagged(address));
  for (size_t axis = 0; axis < view.sizes.size(); ++axis) {
    view.strides[axis] = ask(PD_TensorGetStride, tensor, axis);
  }
  return view;
}

// Memory is reused in the order of a stream, so that the work need not keep its tensors alive.
inline void submit(Context context, const char* name, std::function<void()> work) {
  auto* stream = reinterpret_cast<Stream*>(ask(PD_DeviceContextGetStream, context));
  stream->submit(name, std::move(work));
}

inline void allocate(Context context, Out out, PD_DataType type) {
  ask(PD_DeviceContextAllocateTensor, context, out, size_t{0}, type);
}

inline void reshape(Out out, const Sizes& sizes, const Sizes& strides, int64_t offset) {
  ask(PD_TensorSetDims, out, int64_t(sizes.size()), sizes.data());
  ask(PD_TensorSetStrides, out, int64_t(strides.size()), strides.data());
  ask(PD_TensorSetOffset, out, offset);
}

}  // namespace kunlun_sim
