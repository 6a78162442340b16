// What kernels.cpp has.
#pragma once

namespace kunlun_sim {

inline constexpr const char* kDeviceType = "kunlun_sim";

// Once, when Paddle loads the runtime.
void register_kernels();

}  // namespace kunlun_sim
