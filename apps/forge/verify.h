#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "forge/formats/format.h"

namespace forge::app {

struct VerifyOptions {
  std::int64_t out = 768, in = 3072, tokens = 64;
  std::string rule = "adamw";
  Format weight = Format::fp32, state = Format::fp32;
  std::uint64_t seed = 0;
};

// One check: what was compared, in words, and whether it held.
struct Finding {
  std::string says;
  bool holds = false;
};

// The promises of docs/numerics.md on a weight of the user's own shape, rule and formats, on this machine: each is a
// comparison of every byte of W and its moments after three updates from random numbers.
std::vector<Finding> verify(const VerifyOptions& options);

// How far G = dYᵀX, one sequential chain in fp32, is from the same in fp64: the largest error over Σ|dY·X|, in units of
// fp32's epsilon. Of up to 64 rows.
double chain_error(const VerifyOptions& options);

}  // namespace forge::app
