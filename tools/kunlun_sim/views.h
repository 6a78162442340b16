// Where the elements of a tensor lie, and copies from one such place to another.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <numeric>
#include <vector>

#include "refuse.h"

namespace kunlun_sim {

using Sizes = std::vector<int64_t>;

inline int64_t count(const Sizes& sizes) {
  return std::accumulate(sizes.begin(), sizes.end(), int64_t{1}, std::multiplies<int64_t>());
}

inline Sizes dense_strides(const Sizes& sizes) {
  Sizes strides(sizes.size());
  int64_t stride = 1;
  for (size_t axis = sizes.size(); axis-- > 0; stride *= sizes[axis]) strides[axis] = stride;
  return strides;
}

// Strides are in elements, width is an element's bytes.
struct View {
  char* data;
  size_t width;
  Sizes sizes;
  Sizes strides;

  // Of the first axes, as many as place has.
  char* at(const Sizes& place) const {
    int64_t offset = 0;
    for (size_t axis = 0; axis < place.size(); ++axis) offset += place[axis] * strides[axis];
    return data + offset * int64_t(width);
  }

  // All but the first axes.
  View inner(size_t axes) const {
    return {data, width, {sizes.begin() + long(axes), sizes.end()},
            {strides.begin() + long(axes), strides.end()}};
  }

  // With leading axes of stride 0, and stride 0 where one element serves many, as NumPy has it.
  View broadcast(const Sizes& wanted) const {
    View out{data, width, wanted, Sizes(wanted.size(), 0)};
    size_t extra = 0;  // leading ones that the other does not have
    while (sizes.size() - extra > wanted.size() && sizes[extra] == 1) ++extra;
    if (sizes.size() - extra > wanted.size()) refuse("too many dimensions");
    const size_t shift = wanted.size() + extra - sizes.size();
    for (size_t axis = extra; axis < sizes.size(); ++axis) {
      const size_t to = axis - extra + shift;
      if (sizes[axis] != wanted[to] && sizes[axis] != 1) {
        refuse("shapes do not broadcast");
      }
      out.strides[to] = sizes[axis] == 1 ? 0 : strides[axis];
    }
    return out;
  }
};

// The shape that all of them broadcast to.
inline Sizes common_shape(const std::vector<Sizes>& shapes) {
  Sizes common;
  for (const Sizes& shape : shapes) {
    const size_t axes = std::max(common.size(), shape.size());
    common.insert(common.begin(), axes - common.size(), 1);
    for (size_t back = 1; back <= shape.size(); ++back) {
      int64_t& size = common[axes - back];
      if (size == 1) size = shape[shape.size() - back];
    }
  }
  return common;
}

// Calls visit(place) for every index of the first axes, the last fastest.
template <typename Visit>
void for_each_place(const Sizes& sizes, size_t axes, Visit visit) {
  Sizes place(axes, 0);
  for (;;) {
    visit(place);
    size_t axis = axes;
    while (axis > 0 && ++place[axis - 1] == sizes[axis - 1]) place[--axis] = 0;
    if (axis == 0) return;
  }
}

// How many elements at the end lie densely in both.
inline int64_t dense_run(const View& one, const View& other, size_t& outer) {
  int64_t run = 1;
  for (outer = one.sizes.size(); outer > 0; --outer) {
    const size_t axis = outer - 1;
    const bool single = one.sizes[axis] == 1;
    if (!single && (one.strides[axis] != run || other.strides[axis] != run)) break;
    run *= one.sizes[axis];
  }
  return run;
}

// Of equal sizes. Elements are moved as bytes.
inline void copy(const View& from, const View& to) {
  if (!count(from.sizes)) return;
  size_t outer = 0;
  const size_t bytes = size_t(dense_run(from, to, outer)) * from.width;
  for_each_place(from.sizes, outer, [&](const Sizes& place) {
    std::memmove(to.at(place), from.at(place), bytes);
  });
}

}  // namespace kunlun_sim
