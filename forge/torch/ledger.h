#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <unordered_map>
#include <vector>

#include "forge/torch/gram.h"

namespace forge {

class Gradient;

// A number of bytes and its highest value.
class Bytes {
 public:
  std::int64_t now() const { return now_; }
  std::int64_t peak() const { return peak_; }
  void add(std::int64_t bytes) { peak_ = std::max(peak_, now_ += bytes); }
  void reset_peak() { peak_ = now_; }

 private:
  std::int64_t now_ = 0, peak_ = 0;
};

// Bytes of the storages that tensors keep alive, each storage counted once however many tensors share it.
class HeldBytes {
 public:
  void hold(const at::Tensor& t) {
    if (uses_[t.storage().unsafeGetStorageImpl()]++ == 0) bytes_.add(size(t));
  }
  void release(const at::Tensor& t) {
    auto found = uses_.find(t.storage().unsafeGetStorageImpl());
    if (--found->second > 0) return;
    uses_.erase(found);
    bytes_.add(-size(t));
  }
  Bytes& bytes() { return bytes_; }
  const Bytes& bytes() const { return bytes_; }

 private:
  static std::int64_t size(const at::Tensor& t) { return static_cast<std::int64_t>(t.storage().nbytes()); }

  std::unordered_map<const c10::StorageImpl*, std::int64_t> uses_;
  Bytes bytes_;
};

// What the gradients of one optimizer keep alive, and what became of them.
struct Ledger {
  HeldBytes terms;                                // dY, X, index and values
  Bytes dense_matrices;                           // dense gradients of 2-D parameters
  Bytes dense_vectors;                            // of the rest
  Bytes gradients;                                // all three together, for their highest value at one moment
  std::map<std::string, std::int64_t> collapses;  // how often terms were multiplied out, by reason
  GramCache gram;                                 // of the last norm; valid until some gradient changes
  std::vector<const Gradient*> alive;             // all of them, in the order in which they were made
  const Gradient* not_finite = nullptr;           // the first that was found so since the last step
  std::int64_t skipped_steps = 0;                 // times that it was dropped before the next

  void add_dense(bool is_matrix, std::int64_t bytes) {
    (is_matrix ? dense_matrices : dense_vectors).add(bytes);
    gradients.add(bytes);
  }
  void hold(const at::Tensor& t) {
    count([&] { terms.hold(t); });
  }
  void release(const at::Tensor& t) {
    count([&] { terms.release(t); });
  }

 private:
  template <class F>
  void count(F&& change) {
    std::int64_t before = terms.bytes().now();
    change();
    gradients.add(terms.bytes().now() - before);
    gram = {};
  }
};

}  // namespace forge
