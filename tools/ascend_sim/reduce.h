// Reductions of what several ranks have, in the order of ranks.
#pragma once

#include <hccl/hccl.h>

#include <vector>

#include "half.h"

namespace sim {
namespace {

// What the vendor documents for reductions on A2 and A3.
bool reduces(HcclDataType type, HcclReduceOp op) {
  const bool product = op == HCCL_REDUCE_PROD;
  switch (type) {
    case HCCL_DATA_TYPE_INT8:
    case HCCL_DATA_TYPE_INT32:
    case HCCL_DATA_TYPE_INT64:
    case HCCL_DATA_TYPE_FP16:
    case HCCL_DATA_TYPE_FP32: return true;
    case HCCL_DATA_TYPE_INT16:
    case HCCL_DATA_TYPE_BFP16: return !product;
    default: return false;
  }
}

template <typename Number>
Number combined(Number a, Number b, HcclReduceOp op) {
  switch (op) {
    case HCCL_REDUCE_SUM: return static_cast<Number>(a + b);
    case HCCL_REDUCE_PROD: return static_cast<Number>(a * b);
    case HCCL_REDUCE_MAX: return a > b || a != a ? a : b;
    default: return a < b || a != a ? a : b;
  }
}

template <typename Stored, typename Number, typename Write>
void fold(void* out, const std::vector<const char*>& parts, uint64_t count, HcclReduceOp op,
          const Write& write) {
  for (uint64_t at = 0; at < count; ++at) {
    auto read = [&](const char* part) {
      return static_cast<Number>(reinterpret_cast<const Stored*>(part)[at]);
    };
    Number total = read(parts[0]);
    for (size_t rank = 1; rank < parts.size(); ++rank) total = combined(total, read(parts[rank]), op);
    static_cast<Stored*>(out)[at] = write(total);
  }
}

template <typename Number>
void fold(void* out, const std::vector<const char*>& parts, uint64_t count, HcclReduceOp op) {
  fold<Number, Number>(out, parts, count, op, [](Number value) { return value; });
}

void reduce(void* out, const std::vector<const char*>& parts, uint64_t count, HcclDataType type,
            HcclReduceOp op) {
  switch (type) {
    case HCCL_DATA_TYPE_INT8: return fold<int8_t>(out, parts, count, op);
    case HCCL_DATA_TYPE_INT16: return fold<int16_t>(out, parts, count, op);
    case HCCL_DATA_TYPE_INT32: return fold<int32_t>(out, parts, count, op);
    case HCCL_DATA_TYPE_INT64: return fold<int64_t>(out, parts, count, op);
    case HCCL_DATA_TYPE_FP32: return fold<float>(out, parts, count, op);
    case HCCL_DATA_TYPE_FP16: return fold<Half, float>(out, parts, count, op, Half::of);
    default: return fold<BFloat16, float>(out, parts, count, op, BFloat16::of);
  }
}

}  // namespace
}  // namespace sim
