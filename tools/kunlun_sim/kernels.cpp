// The kernels that the device cannot do without: those that move elements, and those that write
// into a tensor in place. For everything else Paddle copies to the host, runs its CPU kernel and
// copies back; it has no such way for strided tensors, and gives a tensor that is written in place
// new memory, so that its views are left behind.
//
// All of them are work of the current stream and return before it is done. So is matmul.cpp's.

#include "kernels.h"

#include <algorithm>
#include <cstdlib>
#include <vector>

#include "paddle/phi/capi/include/c_int_array.h"
#include "paddle/phi/capi/include/c_kernel_registry.h"
#include "tensors.h"

namespace kunlun_sim {
namespace {

void contiguous(Context context, In x, Out out) {
  const View from = view_of(x);
  reshape(out, from.sizes, dense_strides(from.sizes), 0);
  allocate(context, out, type_of(x));
  submit(context, "contiguous", [from, to = view_of(out)] { copy(from, to); });
}

void strided_copy(Context context, In x, const Sizes* sizes, const Sizes* strides, int64_t offset,
                  Out out) {
  reshape(out, *sizes, *strides, offset);
  const View from = view_of(x), to = view_of(out);
  submit(context, "strided_copy", [from = from.broadcast(to.sizes), to] { copy(from, to); });
}

// The output, with the input's elements, which it has already where it is the same tensor.
View output_of(Context context, const char* name, In x, Out out) {
  const View from = view_of(x);
  allocate(context, out, type_of(x));
  const View to = view_of(out);
  if (to.data != from.data) submit(context, name, [from, to] { copy(from, to); });
  return to;
}

void assign(Context context, In x, Out out) { output_of(context, "assign", x, out); }

template <typename T>
std::vector<char> bytes_of(T value) {
  const auto* start = reinterpret_cast<const char*>(&value);
  return {start, start + sizeof value};
}

std::vector<char> element(PD_Scalar* value, PD_DataType type) {
  const double real = PD_ScalarGetFloat64Data(value);
  const int64_t whole = PD_ScalarGetInt64Data(value);
  switch (type) {
    case FLOAT64: return bytes_of(real);
    case FLOAT32: return bytes_of(float(real));
    case FLOAT16: return bytes_of(phi::dtype::float16(float(real)));
    case BFLOAT16: return bytes_of(phi::dtype::bfloat16(float(real)));
    case BOOL: return bytes_of(real != 0);
    case INT8: case UINT8: return bytes_of(int8_t(whole));
    case INT16: case UINT16: return bytes_of(int16_t(whole));
    case INT32: case UINT32: return bytes_of(int32_t(whole));
    case INT64: case UINT64: return bytes_of(whole);
    default: refuse("fill has no complex numbers");
  }
}

void fill(Context context, In x, PD_Scalar* value, Out out) {
  allocate(context, out, type_of(x));
  const View to = view_of(out);
  submit(context, "fill", [to, bytes = element(value, type_of(x))]() mutable {
    copy(View{bytes.data(), to.width, {}, {}}.broadcast(to.sizes), to);
  });
}

// As Python slices, with numbers outside of the axis brought to its ends.
View slice(View view, size_t axis, int64_t start, int64_t end, int64_t step) {
  const int64_t size = view.sizes.at(axis), first = step > 0 ? 0 : -1;
  const auto within = [=](int64_t place) {
    return std::clamp(place < 0 ? place + size : place, first, first + size);
  };
  start = within(start);
  const int64_t span = (within(end) - start) * (step > 0 ? 1 : -1), stride = std::abs(step);
  view.sizes[axis] = std::max<int64_t>(0, (span + stride - 1) / stride);
  view.data += start * view.strides[axis] * int64_t(view.width);
  view.strides[axis] *= step;
  return view;
}

void set_value(Context context, In x, In value, PD_IntArray* starts, PD_IntArray* ends,
               PD_IntArray* steps, const Sizes* axes, const Sizes* dropped, const Sizes* added,
               Out out) {
  if (!added->empty()) refuse("set_value has no new axes");
  View part = output_of(context, "set_value", x, out);
  if (!part.data) return;
  const auto at = [](PD_IntArray* numbers, size_t index) {
    return static_cast<int64_t*>(PD_IntArrayGetDataPointer(numbers).data)[index];
  };
  for (size_t one = 0; one < axes->size(); ++one) {
    part = slice(part, size_t((*axes)[one]), at(starts, one), at(ends, one), at(steps, one));
  }
  View target{part.data, part.width, {}, {}};
  for (size_t axis = 0; axis < part.sizes.size(); ++axis) {
    if (std::count(dropped->begin(), dropped->end(), int64_t(axis))) continue;
    target.sizes.push_back(part.sizes[axis]);
    target.strides.push_back(part.strides[axis]);
  }
  const View from = view_of(value).broadcast(target.sizes);
  submit(context, "set_value", [from, target] { copy(from, target); });
}

void check_index(In index) {
  const PD_DataType type = type_of(index);
  if (type != INT32 && type != INT64) refuse("indices are of int32 or int64");
}

int64_t number(const View& index, const Sizes& place) {
  const char* at = index.at(place);
  return index.width == 8 ? *reinterpret_cast<const int64_t*>(at)
                          : *reinterpret_cast<const int32_t*>(at);
}

// target[index_0[i], index_1[i], ...] = value[i] for every place i of the shape; the last of equal
// ones stays. What lies outside of the target is left out, as the device cannot raise.
void put(const View& target, const std::vector<View>& indices, const Sizes& shape,
         const View& value) {
  View to = target.inner(indices.size()), from = value.inner(shape.size());
  for_each_place(shape, shape.size(), [&](const Sizes& place) {
    Sizes row;
    for (size_t axis = 0; axis < indices.size(); ++axis) {
      const int64_t size = target.sizes[axis], found = number(indices[axis], place);
      row.push_back(found < 0 ? found + size : found);
      if (row.back() < 0 || row.back() >= size) {
        trace().write("outside", found, "of", size);
        return;
      }
    }
    to.data = target.at(row);
    from.data = value.at(place);
    copy(from, to);
  });
}

void index_put(Context context, In x, const std::vector<In>* indices, In value, bool accumulate,
               Out out) {
  if (accumulate) refuse("index_put does not accumulate");
  const View to = output_of(context, "index_put", x, out);
  std::vector<View> places;
  std::vector<Sizes> shapes;
  for (In index : *indices) {
    check_index(index);
    places.push_back(view_of(index));
    shapes.push_back(places.back().sizes);
  }
  const Sizes shape = common_shape(shapes);
  if (!count(shape)) return;
  for (View& place : places) place = place.broadcast(shape);
  Sizes sizes = shape;
  sizes.insert(sizes.end(), to.sizes.begin() + long(places.size()), to.sizes.end());
  const View from = view_of(value).broadcast(sizes);
  submit(context, "index_put", [=] { put(to, places, shape, from); });
}

void scatter(Context context, In x, In index, In updates, bool overwrite, Out out) {
  if (!overwrite) refuse("scatter does not add");
  check_index(index);
  const View to = output_of(context, "scatter", x, out), from = view_of(updates);
  View places = view_of(index);
  places = View{places.data, places.width, {count(places.sizes)}, {1}};  // it may be a column
  if (!places.sizes[0]) return;
  submit(context, "scatter", [=] { put(to, {places}, places.sizes, from); });
}

constexpr auto kTensor = PD_ARG_TYPE_TENSOR;
using Types = std::vector<PD_KernelArgumentType>;

void enroll(const char* name, PD_DataType type, Types in, Types attributes, void* kernel) {
  Types out{kTensor};
  PD_RegisterPhiKernel(
      name, kDeviceType, type, ANY, in.size(), in.data(), attributes.size(), attributes.data(),
      out.size(), out.data(), [](const PD_KernelKey*, PD_Kernel*) {},
      [](PD_KernelContext*) { refuse("no static graphs"); }, kernel);
}

void enroll(const char* name, const Types& in, const Types& attributes, void* kernel) {
  for (int type = BOOL; type <= COMPLEX128; ++type) {
    enroll(name, PD_DataType(type), in, attributes, kernel);
  }
}

template <typename... Arguments>
void* address(void (*kernel)(Arguments...)) {
  return reinterpret_cast<void*>(kernel);
}

}  // namespace

void register_kernels() {
  constexpr auto kBool = PD_ARG_TYPE_BOOL;
  constexpr auto kInts = PD_ARG_TYPE_INT_ARRAY;
  constexpr auto kList = PD_ARG_TYPE_LIST_INT64;
  enroll("contiguous", {kTensor}, {}, address(contiguous));
  enroll("strided_copy", {kTensor}, {kList, kList, PD_ARG_TYPE_INT64}, address(strided_copy));
  enroll("assign", {kTensor}, {}, address(assign));
  enroll("fill", {kTensor}, {PD_ARG_TYPE_SCALAR}, address(fill));
  enroll("set_value_with_tensor", {kTensor, kTensor}, {kInts, kInts, kInts, kList, kList, kList},
         address(set_value));
  enroll("index_put", {kTensor, PD_ARG_TYPE_LIST_TENSOR, kTensor}, {kBool}, address(index_put));
  enroll("matmul", FLOAT32, {kTensor, kTensor}, {kBool, kBool}, matmul_kernel());
  enroll("scatter", {kTensor, kTensor, kTensor}, {kBool}, address(scatter));
}

}  // namespace kunlun_sim
