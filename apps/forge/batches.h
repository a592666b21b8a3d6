#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace forge::app {

// An endless stream of batches from one token stream. Window i is tokens [i·seq, i·seq + seq], seq + 1 of them: what
// goes in and, one further, what comes out; neighbours share one token. A rest that fills no window is left out. Every
// epoch visits each window once, in an order drawn from (seed, epoch), or in file order without shuffling; a batch may
// reach into the next epoch. The same arguments give the same batches.
class Batches {
 public:
  // Throws Error where the tokens do not fill one window.
  Batches(std::vector<std::int32_t> tokens, std::int64_t seq, std::uint64_t seed, bool shuffle);

  // The next `batch` windows, (batch, seq + 1) int64.
  at::Tensor next(std::int64_t batch);

  std::int64_t windows() const { return static_cast<std::int64_t>(order_.size()); }
  std::int64_t tokens() const { return static_cast<std::int64_t>(tokens_.size()); }

 private:
  void begin_epoch();

  std::vector<std::int32_t> tokens_;
  std::int64_t seq_;
  std::uint64_t seed_, epoch_ = 0;
  bool shuffle_;
  std::vector<std::int64_t> order_;
  std::size_t position_ = 0;
};

}  // namespace forge::app
