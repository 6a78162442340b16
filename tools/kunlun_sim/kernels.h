// What kernels.cpp and matmul.cpp have.
#pragma once

namespace kunlun_sim {

inline constexpr const char* kDeviceType = "kunlun_sim";

// Of fp32: (context, x, y, transpose_x, transpose_y, out).
void* matmul_kernel();

// Once, when Paddle loads the runtime.
void register_kernels();

}  // namespace kunlun_sim
