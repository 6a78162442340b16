// What was asked of the runtime and what its streams did, in order, for tests to read.
#pragma once

#include <mutex>
#include <sstream>
#include <string>

namespace kunlun_sim {

class Trace {
 public:
  void enable(bool on) {
    std::lock_guard<std::mutex> hold(lock_);
    on_ = on;
    lines_.clear();
  }
  template <typename... Words>
  void write(const Words&... words) {
    std::lock_guard<std::mutex> hold(lock_);
    if (!on_) return;
    std::ostringstream line;
    ((line << words << ' '), ...);
    lines_ += line.str();
    lines_.back() = '\n';
  }
  std::string read() {
    std::lock_guard<std::mutex> hold(lock_);
    return lines_;
  }

 private:
  std::mutex lock_;
  bool on_ = false;
  std::string lines_;
};

// Never destroyed: the threads of streams run until the process ends.
inline Trace& trace() {
  static auto* made = new Trace();
  return *made;
}

}  // namespace kunlun_sim
