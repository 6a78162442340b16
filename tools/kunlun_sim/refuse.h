// Errors as Paddle knows them; any other exception of a kernel would end the process.
#pragma once

#include <string>

#include "paddle/common/enforce.h"

namespace kunlun_sim {

[[noreturn]] inline void refuse(const std::string& why) {
  PADDLE_THROW(common::errors::InvalidArgument("kunlun_sim: %s", why));
}

}  // namespace kunlun_sim
