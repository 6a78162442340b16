// Where the elements of a tensor lie, and copies from one such place to another.
#pragma once

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
  Sizes place(outer, 0);
  for (;;) {
    int64_t source = 0, target = 0;
    for (size_t axis = 0; axis < outer; ++axis) {
      source += place[axis] * from.strides[axis];
      target += place[axis] * to.strides[axis];
    }
    std::memmove(to.data + target * int64_t(to.width), from.data + source * int64_t(from.width),
                 bytes);
    size_t axis = outer;
    while (axis > 0 && ++place[axis - 1] == from.sizes[axis - 1]) place[--axis] = 0;
    if (axis == 0) return;
  }
}

}  // namespace kunlun_sim
