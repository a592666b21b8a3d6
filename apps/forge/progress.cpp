#include "apps/forge/progress.h"

#include <spdlog/fmt/fmt.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace forge::app {
namespace {

constexpr std::int64_t kPlainLines = 20;

std::string readable_seconds(double seconds) {
  const auto whole = static_cast<std::int64_t>(seconds + 0.5);
  if (whole < 3600) return fmt::format("{}:{:02}", whole / 60, whole % 60);
  return fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60);
}

}  // namespace

std::int64_t peak_resident_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return static_cast<std::int64_t>(usage.ru_maxrss) * 1024;
}

void say(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fflush(stdout);
}

std::string readable_bytes(std::int64_t bytes) {
  constexpr double kMiB = 1 << 20;
  const double mib = static_cast<double>(bytes) / kMiB;
  if (mib >= 1024) return fmt::format("{:.2f} GiB", mib / 1024);
  return mib >= 10 ? fmt::format("{:.0f} MiB", mib) : fmt::format("{:.2f} MiB", mib);
}

ProgressLine::ProgressLine(std::int64_t steps, std::int64_t tokens_a_step)
    : steps_(steps),
      tokens_a_step_(tokens_a_step),
      terminal_(isatty(STDOUT_FILENO) != 0),
      start_(std::chrono::steady_clock::now()) {}

double ProgressLine::seconds() const {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
}

double ProgressLine::tokens_per_second(std::int64_t step) const {
  return static_cast<double>(step * tokens_a_step_) / std::max(seconds(), 1e-9);
}

std::string ProgressLine::line(std::int64_t step, double loss, const std::string& more) const {
  const double left = seconds() / static_cast<double>(step) * static_cast<double>(steps_ - step);
  return fmt::format("step {}/{}  loss {:.4f}{}  {:.0f} tokens/s  peak {}  {} left", step, steps_, loss, more,
                     tokens_per_second(step), readable_bytes(peak_resident_bytes()), readable_seconds(left));
}

void ProgressLine::show(std::int64_t step, double loss, const std::string& more) {
  const std::int64_t every = (steps_ + kPlainLines - 1) / kPlainLines;
  if (terminal_) {
    say("\r\033[K" + line(step, loss, more));
  } else if (step == 1 || step == steps_ || step % every == 0) {
    say(line(step, loss, more) + "\n");
  }
}

void ProgressLine::finish() {
  if (terminal_) say("\n");
}

}  // namespace forge::app
