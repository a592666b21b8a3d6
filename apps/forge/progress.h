#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace forge::app {

// Peak resident memory of this process, in bytes.
std::int64_t peak_resident_bytes();
// "1.2 GiB", "310 MiB"
std::string readable_bytes(std::int64_t bytes);

// Writes to stdout. What cannot be written there stops no training; the program says so at its end.
void say(const std::string& text);

// Where training stands: one line that renews itself on a terminal, about twenty plain ones otherwise. On stdout.
class ProgressLine {
 public:
  ProgressLine(std::int64_t steps, std::int64_t tokens_a_step);
  // more: what else the line says of the step.
  void show(std::int64_t step, double loss, const std::string& more = "");
  void finish();  // closes the line
  double tokens_per_second(std::int64_t step) const;
  double seconds() const;

 private:
  std::string line(std::int64_t step, double loss, const std::string& more) const;

  std::int64_t steps_, tokens_a_step_;
  bool terminal_;
  std::chrono::steady_clock::time_point start_;
};

}  // namespace forge::app
