#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

namespace forge::testing {

// SplitMix64: the same numbers on every machine and standard library.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed) {}

  std::uint64_t bits() {
    std::uint64_t z = (state_ += 0x9E3779B97F4A7C15);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB;
    return z ^ (z >> 31);
  }

  std::int64_t below(std::int64_t n) { return static_cast<std::int64_t>(bits() % static_cast<std::uint64_t>(n)); }
  // In [0, 1).
  double unit() { return static_cast<double>(bits() >> 11) * 0x1p-53; }
  float uniform(double low, double high) { return static_cast<float>(low + (high - low) * unit()); }
  float sign() { return bits() & 1 ? 1.f : -1.f; }

  // |x| spread evenly over the decades [10^low, 10^high), either sign.
  float log_uniform(double low, double high) {
    return sign() * static_cast<float>(std::pow(10.0, low + (high - low) * unit()));
  }

  // About a sixth each: zeros, denormals, the smallest, the largest normal numbers; else ordinary ones. All finite.
  float wild() {
    switch (below(6)) {
      case 0:
        return sign() * 0.f;
      case 1:
        return sign() * std::bit_cast<float>(static_cast<std::uint32_t>(1 + below(0x7FFFFF)));
      case 2:
        return log_uniform(-37, -30);
      case 3:
        return log_uniform(30, 38);
      default:
        return log_uniform(-4, 2);
    }
  }

  // Any of the 2³² bit patterns.
  float any() { return std::bit_cast<float>(static_cast<std::uint32_t>(bits())); }

 private:
  std::uint64_t state_;
};

}  // namespace forge::testing
