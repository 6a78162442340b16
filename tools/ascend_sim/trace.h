// What the vendor's runtime was asked to do, in order: one line per call, for tests to read.
#pragma once

#include <cstdarg>
#include <cstdio>
#include <deque>
#include <mutex>
#include <string>

namespace sim {

class Trace {
 public:
  static Trace& get() {
    static auto* made = new Trace();
    return *made;
  }
  void add(std::string line) {
    std::lock_guard<std::mutex> hold(lock_);
    if (lines_.size() == kMost) lines_.pop_front();
    lines_.push_back(std::move(line));
  }
  // All lines since the last call.
  std::string take() {
    std::lock_guard<std::mutex> hold(lock_);
    std::string text;
    for (const auto& line : lines_) text += line + "\n";
    lines_.clear();
    return text;
  }

 private:
  static constexpr size_t kMost = 200000;
  std::mutex lock_;
  std::deque<std::string> lines_;
};

__attribute__((format(printf, 1, 2))) inline void trace(const char* format, ...) {
  char line[512];
  va_list values;
  va_start(values, format);
  std::vsnprintf(line, sizeof line, format, values);
  va_end(values);
  Trace::get().add(line);
}

}  // namespace sim
